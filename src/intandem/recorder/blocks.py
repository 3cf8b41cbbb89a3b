"""Which modules are kept whole.

A block is a child of a ``ModuleList``, ``Sequential`` or ``ModuleDict``, or a module outside
them that has no children but has parameters, persistent buffers or hooks. A module with none of
these (``nn.Dropout``, a rotary table, a loss) is transparent: what it calls is glue, so that a
result that depends on the batch alone is known to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.nn.utils import parametrize

if TYPE_CHECKING:
    from collections.abc import Iterator

_CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


def find_blocks(model: nn.Module) -> dict[nn.Module, str]:
    """Return the blocks of ``model`` and their names, in the order of registration.

    A module that lies inside a block counts as well: when ``forward`` calls it without going
    through its parent, it is a block of its own.
    """
    found: dict[nn.Module, str] = {}
    for module, name in _outer_blocks(model, "", in_container=isinstance(model, _CONTAINERS)):
        found.setdefault(module, name)
    for module, name in list(found.items()):
        for inner, child in module.named_modules(prefix=name):
            found.setdefault(child, inner)
    found.pop(model, None)
    return found


def _outer_blocks(
    module: nn.Module, prefix: str, *, in_container: bool
) -> Iterator[tuple[nn.Module, str]]:
    for key, child in module.named_children():
        name = f"{prefix}.{key}" if prefix else key
        if _is_container(child):
            yield from _outer_blocks(child, name, in_container=True)
        elif in_container or _is_whole(child):
            yield child, name
        else:
            yield from _outer_blocks(child, name, in_container=False)


def _is_container(module: nn.Module) -> bool:
    return isinstance(module, _CONTAINERS) and not isinstance(
        module, parametrize.ParametrizationList
    )


def _is_whole(module: nn.Module) -> bool:
    """Tell whether a module outside containers is kept whole."""
    if parametrize.is_parametrized(module):
        return True
    if any(True for _ in module.children()):
        return False
    return has_state(module)


def has_state(module: nn.Module) -> bool:
    """Tell whether calling ``module`` can mean more than the torch functions it calls."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    persistent = set(module._buffers) - module._non_persistent_buffers_set
    has_parameters = any(True for _ in module.parameters(recurse=False))
    return any(map(len, hooks)) or bool(persistent) or has_parameters
