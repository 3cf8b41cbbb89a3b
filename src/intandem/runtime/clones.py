"""Copies of blocks that share everything with the originals but some parameters.

What a copy holds of its original by another name (bound methods, partial functions, lists of
modules) leads to the copy, too. What cannot be followed (compiled code, closures) computes with
the original's parameters; its gradients then are the original's, where they are added up all the
same, in whatever order.
"""

from __future__ import annotations

from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

_OWN = frozenset({"_parameters", "_modules"})


class Clone:
    """A copy of a block.

    Args:
        module: the block.
        replaced: parameters of the copy, by the id of the block's own.
    """

    def __init__(self, module: nn.Module, replaced: Mapping[int, nn.Parameter]) -> None:
        self._copies: dict[int, nn.Module] = {}
        self._originals: list[nn.Module] = []
        self._replaced = replaced
        self.module = self._copied(module)
        for original in self._originals:
            state = vars(self._copies[id(original)])
            state.update({k: self._led_here(v) for k, v in state.items() if k not in _OWN})

    def follow(self, leaves: Collection[int]) -> None:
        """Take over the attributes and parameters that the originals have now.

        Args:
            leaves: ids of the parameters that are copies' own.
        """
        for original in self._originals:
            self._follow_one(original, self._copies[id(original)], leaves)

    def _copied(self, module: nn.Module) -> nn.Module:
        if id(module) in self._copies:
            return self._copies[id(module)]
        kind = type(module)
        copy = self._copies[id(module)] = kind.__new__(kind)  # copy.copy refuses parametrizations
        self._originals.append(module)
        state = vars(copy)
        state.update(vars(module))
        state["_parameters"] = {
            name: None if p is None else self._replaced.get(id(p), p)
            for name, p in module._parameters.items()
        }
        state["_modules"] = {
            name: None if child is None else self._copied(child)
            for name, child in module._modules.items()
        }
        return copy

    def _follow_one(self, original: nn.Module, copy: nn.Module, leaves: Collection[int]) -> None:
        for key, parameter in original._parameters.items():
            if id(copy._parameters.get(key)) not in leaves:
                copy._parameters[key] = parameter
        state = vars(copy)
        for key in set(state) - set(vars(original)) - _OWN:
            del state[key]
        state.update({k: self._led_here(v) for k, v in vars(original).items() if k not in _OWN})

    def _led_here(self, value: Any, depth: int = 3) -> Any:
        """Return ``value``, or where it holds what was copied, one that holds the copy."""
        if isinstance(value, nn.Module | nn.Parameter):
            return self._copies.get(id(value), self._replaced.get(id(value), value))
        if isinstance(value, MethodType):
            home = self._copies.get(id(value.__self__))
            return value if home is None else MethodType(value.__func__, home)
        if depth == 0:
            return value
        if isinstance(value, partial):
            parts = value.func, value.args, value.keywords
            func, args, kwargs = led = tuple(self._led_here(part, depth - 1) for part in parts)
            return value if _are_the_same(led, parts) else partial(func, *args, **kwargs)
        if type(value) in {list, tuple}:
            items = [self._led_here(item, depth - 1) for item in value]
            return value if _are_the_same(items, value) else type(value)(items)
        if type(value) is dict:
            held = {key: self._led_here(item, depth - 1) for key, item in value.items()}
            return value if _are_the_same(held.values(), value.values()) else held
        return value


def _are_the_same(found: Iterable[object], before: Iterable[object]) -> bool:
    return all(a is b for a, b in zip(found, before, strict=True))
