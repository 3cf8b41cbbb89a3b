"""Walking through a model's modules: what torch's own walks give, in one go.

Torch's are generators in generators, each as deep as the model, and a recording walks often.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from intandem.recorder.values import version_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn


def named_modules(
    model: nn.Module, prefix: str = "", *, each_once: bool = True
) -> list[tuple[str, nn.Module]]:
    """Return the modules of ``model``, itself first, with their dotted names.

    Args:
        model: any module.
        prefix: its own name.
        each_once: give a module that is registered twice its first name only.
    """
    found = [(prefix, model)]
    _walk(model, prefix, found, {id(model)} if each_once else None)
    return found


def _walk(
    module: nn.Module, name: str, found: list[tuple[str, nn.Module]], seen: set[int] | None
) -> None:
    for key, child in module._modules.items():
        if child is None:
            continue
        if seen is not None:
            if id(child) in seen:
                continue
            seen.add(id(child))
        path = f"{name}.{key}" if name else key
        found.append((path, child))
        if child._modules:
            _walk(child, path, found, seen)


def named_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters of ``model``, each with its first name, in the model's order."""
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for path, module in named_modules(model):
        for key, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in found:
                found[id(parameter)] = (f"{path}.{key}" if path else key, parameter)
    return list(found.values())


class Tree(NamedTuple):
    """The modules of a model at one time: it is walked through once for all who ask.

    Attributes:
        model: itself.
        name_of: the first name of every module, in the model's order.
        all_named: every module under all its names, in the model's order.
    """

    model: nn.Module
    name_of: dict[nn.Module, str]
    all_named: list[tuple[str, nn.Module]]


def tree_of(model: nn.Module) -> Tree:
    """Return the modules of ``model`` now."""
    all_named = named_modules(model, each_once=False)
    name_of: dict[nn.Module, str] = {}
    for name, module in all_named:
        name_of.setdefault(module, name)
    return Tree(model, name_of, all_named)


class Registered(NamedTuple):
    """Parameters and buffers under all their names, whether they are shared or not."""

    parameters: list[tuple[str, nn.Parameter]]
    buffers: list[tuple[str, Tensor]]

    def identities(self) -> dict[str, int]:
        """Return which tensor is registered under each name."""
        return {name: id(tensor) for name, tensor in (*self.parameters, *self.buffers)}

    def versions(self) -> dict[str, int]:
        """Return how often each parameter has been written to."""
        return {name: version_of(parameter) for name, parameter in self.parameters}


def registered_in(tree: Tree) -> Registered:
    """Return what is registered in the modules of ``tree`` now."""
    parameters: list[tuple[str, nn.Parameter]] = []
    buffers: list[tuple[str, Tensor]] = []
    for path, module in tree.all_named:
        if module._parameters:
            _add(parameters, path, module._parameters)
        if module._buffers:
            _add(buffers, path, module._buffers)
    return Registered(parameters, buffers)


def _add(found: list[tuple[str, Any]], path: str, table: Mapping[str, Any]) -> None:
    prefix = f"{path}." if path else ""
    found += [(prefix + key, tensor) for key, tensor in table.items() if tensor is not None]
