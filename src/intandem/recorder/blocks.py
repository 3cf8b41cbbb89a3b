"""Which modules are kept whole.

A block is a child of a ``ModuleList``, ``Sequential`` or ``ModuleDict``, or a module outside
them that has no children but has parameters, persistent buffers or hooks. A module with none of
these (``nn.Dropout``, a rotary table, a loss) is transparent: what it calls is glue, so that a
result that depends on the batch alone is known to. A user may name more modules to keep whole.
A block that is opened is transparent too, and what is in it are blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn.utils import parametrize

from intandem.errors import CaptureError
from intandem.recorder.modes import compiles
from intandem.recorder.modules import named_modules
from intandem.recorder.stage_chain import StageChain

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

_CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


@dataclass(frozen=True, slots=True)
class Open:
    """A block to look into, by name."""

    name: str


def find_blocks(
    model: nn.Module, named: Sequence[str | type[nn.Module] | Open] = ()
) -> dict[nn.Module, str]:
    """Return the blocks of ``model`` and their names, in the order of registration.

    A module that lies inside a block counts as well: when ``forward`` calls it without going
    through its parent, it is a block of its own.

    Args:
        model: the user's module.
        named: what to keep whole besides what is found: names of modules, names of containers whose
            children are meant, and classes of modules; and what to look into.

    Raises:
        ValueError: if ``model`` has no such module, or it is ``model`` itself.
        CaptureError: if a block to look into has hooks, which nothing would call.
    """
    found: dict[nn.Module, str] = {}
    opened = _opened(model, named)
    whole = named_whole(model, named)
    is_list = isinstance(model, (*_CONTAINERS, StageChain))
    for module, name in _outer_blocks(model, "", whole, opened, in_container=is_list):
        found.setdefault(module, name)
    for module, name in list(found.items()):
        for inner, child in named_modules(module, name):
            found.setdefault(child, inner)
    found.pop(model, None)
    return found


def _opened(model: nn.Module, named: Sequence[str | type[nn.Module] | Open]) -> frozenset[str]:
    """Return the names of the blocks to look into."""
    names = frozenset(one.name for one in named if isinstance(one, Open))
    for name in sorted(names):
        if has_hooks(model.get_submodule(name)):
            msg = (
                f"{name} may be cut inside, so that nothing would call the hooks that it has now; "
                f"register them before Pipeline(...), or keep it whole with blocks=[{name!r}]"
            )
            raise CaptureError(msg)
    return names


def named_whole(
    model: nn.Module, named: Sequence[str | type[nn.Module] | Open]
) -> frozenset[nn.Module]:
    """Return the modules that are to be kept whole because of ``named``; see ``find_blocks``."""
    if not named:
        return frozenset()
    modules = dict(named_modules(model, each_once=False))
    whole: set[nn.Module] = set()
    for name in named:
        if isinstance(name, Open):
            continue
        if isinstance(name, str):
            if name not in modules:
                near = get_close_matches(name, modules, n=3) or [n for n in modules if n][:8]
                msg = f"blocks: the model has no module {name!r}; near it: {', '.join(near)}"
                raise ValueError(msg)
            whole |= set(_meant(modules[name]))
            continue
        found = [module for module in modules.values() if isinstance(module, name)]
        if not found:
            classes = {type(module).__name__: None for module in modules.values()}
            near = get_close_matches(name.__name__, classes, n=3) or list(classes)[:8]
            msg = f"blocks: the model has no {name.__name__}; near it: {', '.join(near)}"
            raise ValueError(msg)
        whole |= set(found)
    if model in whole:
        msg = (
            f"blocks names the model itself ({type(model).__name__}), which could not be cut "
            "then; name modules in it"
        )
        raise ValueError(msg)
    return frozenset(whole)


def _meant(module: nn.Module) -> Iterator[nn.Module]:
    """Yield what a name stands for: the module, or the children of a container."""
    if type(module) not in _CONTAINERS:
        yield module
        return
    for child in module.children():
        yield from _meant(child)


def _outer_blocks(
    module: nn.Module,
    prefix: str,
    whole: frozenset[nn.Module],
    opened: Collection[str],
    *,
    in_container: bool,
) -> Iterator[tuple[nn.Module, str]]:
    stages_are_whole = isinstance(module, StageChain)
    for key, child in module.named_children():
        name = f"{prefix}.{key}" if prefix else key
        if stages_are_whole or child in whole:
            yield child, name
        elif _is_container(child):
            yield from _outer_blocks(child, name, whole, opened, in_container=True)
        elif (in_container or _is_whole(child)) and name not in opened:
            yield child, name
        else:
            yield from _outer_blocks(child, name, whole, opened, in_container=False)


def _is_container(module: nn.Module) -> bool:
    return isinstance(module, _CONTAINERS) and not isinstance(
        module, parametrize.ParametrizationList
    )


def _is_whole(module: nn.Module) -> bool:
    """Tell whether a module outside containers is kept whole."""
    if parametrize.is_parametrized(module):
        return True
    if any(child is not None for child in module._modules.values()):
        return False
    return has_state(module)


def has_hooks(module: nn.Module) -> bool:
    """Tell whether hooks are registered on ``module``."""
    forward = module._forward_hooks or module._forward_pre_hooks
    return bool(forward or module._backward_hooks or module._backward_pre_hooks)


def has_state(module: nn.Module) -> bool:
    """Tell whether calling ``module`` can mean more than the torch functions it calls."""
    if has_hooks(module):
        return True
    if any(parameter is not None for parameter in module._parameters.values()):
        return True
    return not module._buffers.keys() <= module._non_persistent_buffers_set


class Inside:
    """What is registered in blocks, for as long as no module is added or removed.

    Args:
        modules: of the model.
        names: of its parameters and buffers, by id.
    """

    def __init__(self, modules: Iterable[nn.Module], names: Mapping[int, str]) -> None:
        self._buffer_names = {
            module: {names[id(b)] for b in module._buffers.values() if b is not None}
            for module in modules
            if module._buffers
        }
        self._modules: dict[nn.Module, tuple[nn.Module, ...]] = {}
        self._parameters: dict[nn.Module, tuple[nn.Parameter, ...]] = {}
        self._compiled: dict[nn.Module, bool] = {}

    def parameters(self, module: nn.Module) -> tuple[nn.Parameter, ...]:
        """Return the parameters of ``module`` and the modules in it."""
        if module not in self._parameters:
            tables = (inner._parameters.values() for inner in self.modules(module))
            found = {id(p): p for table in tables for p in table if p is not None}
            self._parameters[module] = tuple(found.values())
        return self._parameters[module]

    def buffers(self, module: nn.Module) -> list[Tensor]:
        """Return the buffers that ``module`` and the modules in it have now."""
        tables = (m._buffers for m in self.modules(module) if m._buffers)
        return [buffer for table in tables for buffer in table.values() if buffer is not None]

    def buffer_names(self, module: nn.Module) -> set[str]:
        """Return the names of its buffers, whatever tensors a block has put in their places."""
        return set().union(*(self._buffer_names.get(m, ()) for m in self.modules(module)))

    def is_compiled(self, module: nn.Module) -> bool:
        """Tell whether it, or a module in it, is compiled."""
        if module not in self._compiled:
            self._compiled[module] = any(map(compiles, self.modules(module)))
        return self._compiled[module]

    def modules(self, module: nn.Module) -> tuple[nn.Module, ...]:
        """Return ``module`` and the modules in it."""
        if module not in self._modules:
            self._modules[module] = tuple(inner for _, inner in named_modules(module))
        return self._modules[module]
