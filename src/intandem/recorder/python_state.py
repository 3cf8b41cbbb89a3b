"""Python's part of what glue computes with: numbers and flags on modules, and its generators.

A recording holds what glue read when it ran. So plain attributes of modules outside blocks are part
of what a recording is for, and a ``forward`` that changes them between blocks is refused, unless it
does so in its first run only, or to the same values in each, and what it calls stays the same.
"""

from __future__ import annotations

import copy
import random
import sys
from collections import deque
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from intandem.recorder import refusals
from intandem.recorder.locations import where_set
from intandem.recorder.modules import named_modules

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping

    from intandem.errors import CaptureError
    from intandem.recorder.modules import Tree

PlainState = dict[str, "Hashable"]
"""Plain attributes of modules by their dotted name, such as ``scale`` or ``encoder.tau``."""

_PLAIN = (int, float, complex, bool, str, bytes, type(None), Enum, torch.dtype, torch.device)
_EXACTLY_PLAIN = frozenset(_PLAIN)
CONTAINERS = (list, dict, set, deque)
_COPIED = frozenset(CONTAINERS)


class _Reach(NamedTuple):
    """How far containers and objects are looked into."""

    depth: int
    num_items: int

    def within(self) -> _Reach:
        return self._replace(depth=self.depth - 1)


_WATCHED = _Reach(depth=3, num_items=64)
_COMPARED = _Reach(depth=6, num_items=1024)
_MAX_BYTES = 1 << 16
OF_MODULES = frozenset(vars(nn.Module()))
"""What torch keeps in every module; what may change in it is looked at elsewhere."""


def plain_state(
    model: nn.Module, blocks: Collection[nn.Module], reach: _Reach = _COMPARED
) -> PlainState:
    """Return what glue may read on the modules outside ``blocks``, besides registered tensors.

    Lists, dictionaries and plain objects in attributes are looked into, each object once.
    """
    return _plain_state_of({m: name for name, m in named_modules(model)}, blocks, reach)


def _plain_state_of(
    name_of: Mapping[nn.Module, str], blocks: Collection[nn.Module], reach: _Reach
) -> PlainState:
    found: PlainState = {}
    seen: set[int] = set()
    for module, name in name_of.items():
        if module in blocks:
            continue
        prefix = f"{name}." if name else ""
        for key, value in vars(module).items():
            if key not in OF_MODULES or key == "training":
                plain = _plain(value, reach, seen)
                if plain is not _NOT_PLAIN:
                    found[prefix + key] = plain
        for key, tensor in module._buffers.items():
            found[prefix + key] = _kind(tensor)
    return found


def _kind(tensor: Tensor | None) -> Hashable:
    """Return what forward may ask of a buffer besides its numbers."""
    if tensor is None:
        return _NONE
    return ("buffer", f"{tensor.dtype} {tuple(tensor.shape)}")


class AttributesWatched:
    """Attributes of the modules outside blocks, before and after a recording.

    Args:
        tree: the user's module.
        blocks: modules kept whole.
    """

    def __init__(self, tree: Tree, blocks: Collection[nn.Module]) -> None:
        self._blocks = blocks
        self._model = tree.model
        self._before = _plain_state_of(tree.name_of, blocks, _WATCHED)
        self._after: PlainState = {}
        self._changed: dict[str, Any] = {}

    def look(self, tree: Tree) -> None:
        """Note what there is now, in the modules that there are now."""
        before, after = self._before, _plain_state_of(tree.name_of, self._blocks, _WATCHED)
        self._after = after
        keys = {key for key in {**before, **after} if after.get(key) != before.get(key)}
        for module, name in tree.name_of.items() if keys else ():
            for key, value in vars(module).items():
                dotted = f"{name}.{key}" if name else key
                if dotted in keys:
                    self._changed[dotted] = copy.copy(value) if type(value) is dict else value

    def changed(self, is_derived: Callable[[Tensor], bool]) -> list[Changed]:
        """Return what ``forward`` changed, but for caches of what depends on the batch alone.

        Those are made again by each run.

        Args:
            is_derived: tells whether a tensor is such a value.
        """
        found = []
        for dotted in self._after:
            if self._after[dotted] == self._before.get(dotted):
                continue
            value = self._changed.get(dotted)
            cached = list(value.values()) if isinstance(value, dict) else [value]
            if all(isinstance(item, Tensor) and is_derived(item) for item in cached):
                continue
            path, _, key = dotted.rpartition(".")
            is_filled_in = _is_filled_in(self._before.get(dotted), self._after[dotted])
            found.append(Changed(dotted, self._model.get_submodule(path), key, is_filled_in))
        return found


class Changed(NamedTuple):
    """An attribute that a run of ``forward`` has changed; see [Note: set once].

    Attributes:
        name: dotted.
        module: that has it.
        key: its name there.
        is_filled_in: whether all that changed is what it lacked, or had None for.
    """

    name: str
    module: nn.Module
    key: str
    is_filled_in: bool

    def refusal(self) -> CaptureError:
        """Return an error that names the attribute and the line that sets it."""
        return refusals.attribute_set(self.name, where_set(self.module, self.key))


def _is_filled_in(before: Hashable, after: Hashable) -> bool:
    """Tell whether what an object lacked, or had None for, is there now, and nothing else is new.

    Configurations are filled in like this by the first call that knows better.
    """
    if not isinstance(before, tuple) or not isinstance(after, tuple) or before[0] != after[0]:
        return False
    if not isinstance(before[1], tuple) or not isinstance(after[1], tuple):
        return False
    old, new = dict(before[1]), dict(after[1])
    if not set(old) <= set(new):
        return False
    differing = [key for key in new if old.get(key) != new[key]]
    return all(
        (old.get(key, _NONE) == _NONE and new[key][0] != "tensor")
        or _is_filled_in(old.get(key), new[key])
        for key in differing
    )


class Kept:
    """Attributes of all modules, and lists and dictionaries in them, to be put back.

    What torch keeps in modules is left alone, and so are flags where ``forward`` has hooked
    modules: a flag may say that they are hooked already.

    Args:
        model: the user's module.
        same: taken of it before, if they are as they were then: taking them costs time.
    """

    def __init__(self, model: nn.Module, same: Kept | None = None) -> None:
        self._before: dict[nn.Module, dict[str, tuple[Any, Any]]]
        if same is None:
            self._before = {module: attributes_of(module) for _, module in named_modules(model)}
        else:
            self._before = dict(same._before)
        self._num_hooks: int = self._count_hooks() if same is None else same._num_hooks

    @property
    def before(self) -> Mapping[nn.Module, Mapping[str, tuple[Any, Any]]]:
        """Attributes of every module, with a copy of what is in containers."""
        return self._before

    def put_back(self) -> None:
        """Give all modules the attributes they had."""
        are_hooked = self._count_hooks() != self._num_hooks
        for module, attributes in self._before.items():
            now = vars(module)
            left = {k for k, v in now.items() if isinstance(v, bool)} if are_hooked else ()
            added = [k for k in now if not (k in attributes or k in OF_MODULES or k in left)]
            for key in added:
                del now[key]
            for key, (value, content) in attributes.items():
                if key not in left:
                    now[key] = value
                    if content is not None:
                        _refill(value, content)

    def let_stand(self, changes: Iterable[Changed]) -> None:
        """Take changed attributes as they are now for what is to be put back."""
        for change in changes:
            if change.module in self._before:
                value = _with_content(vars(change.module)[change.key])
                attributes = self._before[change.module]
                self._before[change.module] = {**attributes, change.key: value}

    def _count_hooks(self) -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in self._before)


_OPEN: ContextVar[tuple[Kept, ...]] = ContextVar("attributes to be put back", default=())


@contextmanager
def attributes_kept(
    model: nn.Module, same: Kept | None = None, *, on_success: bool = True
) -> Iterator[Kept]:
    """Put attributes back afterwards; see ``Kept``.

    Args:
        model: the user's module.
        same: as for ``Kept``.
        on_success: put them back even if nothing is raised.
    """
    kept = Kept(model, same)
    token = _OPEN.set((*_OPEN.get(), kept))
    try:
        yield kept
    except BaseException:
        kept.put_back()
        raise
    finally:
        _OPEN.reset(token)
    if on_success:
        kept.put_back()


def let_stand(changes: Iterable[Changed]) -> None:
    """Keep what ``forward`` has set up once for all from being put back by any context."""
    for kept in _OPEN.get():
        kept.let_stand(changes)


def attributes_of(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Return a module's attributes, with a copy of what is in containers."""
    return {
        key: (value, value.copy() if type(value) in _COPIED else None)
        for key, value in vars(module).items()
        if key not in OF_MODULES
    }


def _with_content(value: Any) -> tuple[Any, Any]:
    return value, copy.copy(value) if type(value) in CONTAINERS else None


def _refill(container: Any, content: Any) -> None:
    container.clear()
    if isinstance(container, list | deque):
        container.extend(content)
    else:
        container.update(content)


class _NotPlain:
    def __getitem__(self, index: int) -> None:
        """It is of no kind."""


_NONE = ("NoneType", None)


_NOT_PLAIN = _NotPlain()


def _plain(value: Any, reach: _Reach, seen: set[int]) -> Hashable:
    """Return what to compare ``value`` by; unregistered tensors are compared by identity."""
    kind = type(value)
    if kind in _EXACTLY_PLAIN:
        return (kind.__name__, value)
    if id(value) in seen:
        return _NOT_PLAIN
    if isinstance(value, Tensor):
        return ("tensor", id(value))
    if isinstance(value, _PLAIN):
        return (kind.__name__, value)
    if _is_array(value):
        return ("array", f"{value.dtype} {value.shape} {value.tobytes().hex()}")
    if not reach.depth or isinstance(value, nn.Module | type) or callable(value):
        return _NOT_PLAIN
    held = children(value)
    if held is None or len(held) > reach.num_items:
        return _NOT_PLAIN
    seen.add(id(value))
    within = reach.within()
    found = tuple((key, _plain(child, within, seen)) for key, child in held)
    return (type(value).__name__, found)


def _is_array(value: Any) -> bool:
    """Tell whether ``value`` is a NumPy array that is small enough to be compared."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray) and value.nbytes <= _MAX_BYTES


def children(value: Any) -> list[tuple[Hashable, Any]] | None:
    """Return what a container or a plain object holds, by its key there."""
    if isinstance(value, list | tuple | deque):
        return list(enumerate(value))
    if isinstance(value, set | frozenset):
        return [(repr(item), item) for item in sorted(value, key=repr)]
    if isinstance(value, dict):
        return [(repr(key), item) for key, item in value.items()]
    attributes = getattr(value, "__dict__", None)
    return None if attributes is None else list(attributes.items())


@contextmanager
def python_generators_kept() -> Iterator[None]:
    """Put Python's and NumPy's random generators back afterwards."""
    python, numpy = random.getstate(), sys.modules.get("numpy")
    arrays = None if numpy is None else numpy.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        if numpy is not None and arrays is not None:
            numpy.random.set_state(arrays)


def seed_python_generators(key: int) -> None:
    """Seed Python's and NumPy's generators with a key of 64 bits."""
    random.seed(key)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(key % 2**32)


def python_generators_state() -> object:
    """Return a value that differs once anything has been drawn from Python's generators."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return random.getstate()
    kind, keys, *rest = numpy.random.get_state()
    return random.getstate(), kind, keys.tobytes(), *rest
