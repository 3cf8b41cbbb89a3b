"""Nested containers of tensors: batches, arguments and outputs.

Lists, tuples, dictionaries and everything registered with ``torch.utils._pytree`` are walked,
and so are slices and plain dataclasses, which models pass around too.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


PLAIN = (int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
"""Types of leaves that hold no tensors."""


ATOMS = frozenset([Tensor, nn.Parameter, *PLAIN])
"""Types that are leaves, known without looking further: most of what is met."""


class Leaf:
    """Base of dataclasses that are leaves themselves."""

    __slots__ = ()


def map_tree(function: Callable[[Any], Any], tree: Any) -> Any:
    """Return ``tree`` with ``function`` applied to every leaf; containers keep their types."""
    kind = type(tree)
    if kind in ATOMS:
        return function(tree)
    if kind is tuple or kind is list:
        return kind([function(c) if type(c) in ATOMS else map_tree(function, c) for c in tree])
    if kind is dict:
        return {key: map_tree(function, child) for key, child in tree.items()}
    if kind is slice:
        return slice(*(map_tree(function, part) for part in (tree.start, tree.stop, tree.step)))
    if _is_namedtuple(tree) and kind not in _pytree.SUPPORTED_NODES:
        # not by its constructor, which may ask for what leaves are replaced by
        return tuple.__new__(kind, [map_tree(function, child) for child in tree])
    if kind in _pytree.SUPPORTED_NODES:
        children, spec = _pytree.tree_flatten(tree, is_leaf=lambda node: node is not tree)
        return _pytree.tree_unflatten([map_tree(function, child) for child in children], spec)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type | Leaf):
        return _map_dataclass(function, tree)
    return function(tree)


def own_memory(tree: Any) -> Any:
    """Return ``tree`` with copies of its tensors, detached: a model may write to what it is given.

    A tensor that is there twice is one copy.
    """
    copies: dict[int, Tensor] = {}

    def copied(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) not in copies:
            copies[id(leaf)] = leaf.detach().clone()
        return copies[id(leaf)]

    return map_tree(copied, tree)


def leaves(tree: Any) -> list[Any]:
    """Return the leaves of ``tree`` in a fixed order."""
    found: list[Any] = []
    _collect(tree, found)
    return found


def tensors_in(*trees: Any) -> list[Tensor]:
    """Return the leaves of ``trees`` that are tensors, in a fixed order."""
    tensors: list[Tensor] = []
    _sort(trees, tensors, [])
    return tensors


class Sorted(NamedTuple):
    """Leaves, in a fixed order: those that are tensors, and those of no type in ``ATOMS``."""

    tensors: list[Tensor]
    others: list[Any]


def sorted_leaves(*trees: Any) -> Sorted:
    """Return the leaves of ``trees`` by what they are, but for those that hold no tensors."""
    found = Sorted([], [])
    _sort(trees, *found)
    return found


def _sort(trees: Iterable[Any], tensors: list[Tensor], others: list[Any]) -> None:
    for tree in trees:
        kind = type(tree)
        if kind is Tensor or kind is nn.Parameter:
            tensors.append(tree)
        elif kind in ATOMS:
            continue
        elif kind is tuple or kind is list:
            _sort(tree, tensors, others)
        elif kind is dict:
            _sort(tree.values(), tensors, others)
        else:
            for leaf in leaves(tree):
                (tensors if isinstance(leaf, Tensor) else others).append(leaf)


def _collect(tree: Any, found: list[Any]) -> None:
    kind = type(tree)
    if kind in ATOMS:
        found.append(tree)
    elif kind is tuple or kind is list:
        for child in tree:
            if type(child) in ATOMS:
                found.append(child)
            else:
                _collect(child, found)
    elif kind is dict:
        for child in tree.values():
            _collect(child, found)
    elif issubclass(kind, Leaf):
        found.append(tree)
    else:
        map_tree(found.append, tree)


def named_leaves(tree: Any, name: str = "") -> list[tuple[str, Any]]:
    """Return ``(path, leaf)`` pairs such as ``("labels", tensor)`` or ``("0.mask", tensor)``."""
    if isinstance(tree, dict):
        items = [(str(key), child) for key, child in tree.items()]
    elif isinstance(tree, list | tuple):
        items = [(str(index), child) for index, child in enumerate(tree)]
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        items = [(field.name, getattr(tree, field.name)) for field in dataclasses.fields(tree)]
    else:
        return [(name or "batch", tree)]
    prefix = f"{name}." if name else ""
    return [pair for key, child in items for pair in named_leaves(child, prefix + key)]


def _is_namedtuple(tree: Any) -> bool:
    return isinstance(tree, tuple) and hasattr(tree, "_fields")


def _map_dataclass(function: Callable[[Any], Any], tree: Any) -> Any:
    clone = copy.copy(tree)
    for field in dataclasses.fields(tree):
        value = map_tree(function, getattr(tree, field.name))
        object.__setattr__(clone, field.name, value)
    return clone


def holds_tensors(thing: Any, depth: int) -> bool:
    """Tell whether ``thing``, or an object in it down to ``depth``, is a tensor."""
    if isinstance(thing, Tensor):
        return True
    if depth == 0 or isinstance(thing, PLAIN):
        return False
    if isinstance(thing, dict):
        children = list(thing.values())
    elif isinstance(thing, list | tuple | set):
        children = list(thing)
    else:
        children = list(getattr(thing, "__dict__", {}).values())
    return any(holds_tensors(child, depth - 1) for child in children)
