"""Python's part of what glue computes with: numbers and flags on modules, and its generators.

A recording holds what glue read when it ran. So plain attributes of modules outside blocks are part
of what a recording is for, and a ``forward`` that changes them between blocks is refused.
"""

from __future__ import annotations

import copy
import random
import sys
from collections import deque
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from intandem.recorder import refusals
from intandem.recorder.locations import where_set

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Iterator

PlainState = dict[str, "Hashable"]
"""Plain attributes of modules by their dotted name, such as ``scale`` or ``encoder.tau``."""

_PLAIN = (int, float, complex, bool, str, bytes, type(None), Enum, torch.dtype, torch.device)
_CONTAINERS = (list, dict, set, deque)
_MAX_ITEMS = 64
_DEPTH = 3
_OF_MODULES = frozenset(vars(nn.Module()))
"""What torch keeps in every module; what may change in it is looked at elsewhere."""


def plain_state(model: nn.Module, blocks: Collection[nn.Module]) -> PlainState:
    """Return what glue may read on the modules outside ``blocks``, besides registered tensors.

    Lists, dictionaries and plain objects in attributes are looked into, each object once.
    """
    found: PlainState = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if module in blocks:
            continue
        prefix = f"{name}." if name else ""
        for key, value in vars(module).items():
            if key not in _OF_MODULES or key == "training":
                plain = _plain(value, _DEPTH, seen)
                if plain is not _NOT_PLAIN:
                    found[prefix + key] = plain
    return found


class AttributesWatched:
    """Attributes of the modules outside blocks, before and after a recording.

    Args:
        model: the user's module.
        blocks: modules kept whole.
    """

    def __init__(self, model: nn.Module, blocks: Collection[nn.Module]) -> None:
        self._blocks = blocks
        self._model = model
        self._before = plain_state(model, blocks)
        self._after: PlainState = {}
        self._changed: dict[str, Any] = {}

    def look(self) -> None:
        """Note what there is now."""
        self._after = plain_state(self._model, self._blocks)
        for name, module in self._model.named_modules():
            for key, value in vars(module).items():
                dotted = f"{name}.{key}" if name else key
                if self._after.get(dotted) != self._before.get(dotted):
                    self._changed[dotted] = copy.copy(value) if type(value) is dict else value

    def settle(self, is_derived: Callable[[Tensor], bool]) -> None:
        """Refuse what ``forward`` changed, but for caches of what depends on the batch alone.

        Those are made again by each run.

        Args:
            is_derived: tells whether a tensor is such a value.

        Raises:
            CaptureError: naming the attribute and the line that sets it.
            FilledInError: if it did not before, and forward may do it only once.
            MarkedError: if it is a flag; see [Note: set once].
        """
        for dotted in self._after:
            if self._after[dotted] == self._before.get(dotted):
                continue
            value = self._changed.get(dotted)
            cached = list(value.values()) if isinstance(value, dict) else [value]
            if all(isinstance(item, Tensor) and is_derived(item) for item in cached):
                continue
            path, _, key = dotted.rpartition(".")
            refusal = refusals.attribute_set(
                dotted, where_set(self._model.get_submodule(path), key)
            )
            if _is_filled_in(self._before.get(dotted), self._after[dotted]):
                raise refusals.FilledInError(str(refusal))
            if isinstance(value, bool):
                raise refusals.MarkedError(str(refusal))
            raise refusal


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


@contextmanager
def attributes_kept(model: nn.Module, *, on_success: bool = True) -> Iterator[None]:
    """Put attributes of all modules, and lists and dictionaries in them, back afterwards.

    What torch keeps in modules is left alone, and so are flags where ``forward`` has hooked
    modules: a flag may say that they are hooked already.

    Args:
        model: the user's module.
        on_success: put them back even if nothing is raised.
    """
    before = [(module, _attributes(module)) for module in model.modules()]
    num_hooks = _num_hooks(model)
    try:
        yield
    except BaseException:
        _put_back(before, flags=_num_hooks(model) == num_hooks)
        raise
    if on_success:
        _put_back(before, flags=_num_hooks(model) == num_hooks)


def _num_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def _put_back(before: list[tuple[nn.Module, dict[str, tuple[Any, Any]]]], *, flags: bool) -> None:
    for module, attributes in before:
        kept = set() if flags else {k for k, v in vars(module).items() if isinstance(v, bool)}
        known = _OF_MODULES | kept
        for key in [k for k in vars(module) if k not in attributes and k not in known]:
            del vars(module)[key]
        for key, (value, content) in attributes.items():
            if key in kept:
                continue
            vars(module)[key] = value
            if content is not None:
                _refill(value, content)


def _attributes(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Return a module's attributes, with a copy of what is in containers."""
    return {
        key: (value, copy.copy(value) if type(value) in _CONTAINERS else None)
        for key, value in vars(module).items()
        if key not in _OF_MODULES
    }


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


def _plain(value: Any, depth: int, seen: set[int]) -> Hashable:
    """Return what to compare ``value`` by; unregistered tensors are compared by identity."""
    if isinstance(value, Tensor):
        return ("tensor", id(value))
    if isinstance(value, _PLAIN):
        return (type(value).__name__, value)
    if not depth or isinstance(value, nn.Module | type) or callable(value):
        return _NOT_PLAIN
    children = _children(value)
    if children is None or len(children) > _MAX_ITEMS or id(value) in seen:
        return _NOT_PLAIN
    seen.add(id(value))
    found = tuple((key, _plain(child, depth - 1, seen)) for key, child in children)
    return (type(value).__name__, found)


def _children(value: Any) -> list[tuple[Hashable, Any]] | None:
    """Return what a container or a plain object holds."""
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
