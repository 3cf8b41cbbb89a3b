"""Split a batch into micro-batches, and tell whether two ranks hold the same batch."""

from __future__ import annotations

import ctypes
import dataclasses
import difflib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from intandem.errors import BatchError
from intandem.recorder.trees import leaves, map_tree, named_leaves

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Split = Mapping[str, int | None]
"""By leaf (or what holds it): the dim to split, or None to give it whole to each."""

_PLAIN = (
    Tensor, type(None), bool, int, float, complex, str, bytes, Enum, torch.device, torch.dtype,
)  # fmt: skip
"""Types of leaves that are equal when their values are; a recording is found by them."""


@dataclass(frozen=True, slots=True)
class Microbatches:
    """A batch in parts.

    Attributes:
        parts: one per micro-batch, each of the batch's own structure.
        rows: rows of each part.
    """

    parts: tuple[Any, ...]
    rows: tuple[int, ...]


def split_batch(batch: Any, num_microbatches: int, split: Split | None = None) -> Microbatches:
    """Split ``batch`` into at most ``num_microbatches`` parts of almost equal rows.

    A tensor with at least one dim is split on dim 0 unless ``split`` says otherwise; everything
    else is given whole to each part. Fewer rows than micro-batches give one row each. A list is
    taken for micro-batches that are split already, unless it is a list of tensors.

    Raises:
        BatchError: if leaves disagree about the number of rows, there is nothing to split, or a
            leaf is of a type that cannot be split or compared.
    """
    batch = plain_batch(batch)
    if _is_presplit(batch):
        parts = tuple(map(plain_batch, batch))
        return Microbatches(parts, tuple(_num_rows(part, split) for part in parts))
    rows = _num_rows(batch, split)
    sizes = [len(part) for part in _even(rows, min(num_microbatches, rows))]
    if len(sizes) > 1:
        _check_no_rows_in_lists(batch, rows, split or {})
    columns = {
        name: torch.split(leaf, sizes, dim)
        for name, leaf, dim in _tensors(batch, split)
        if dim is not None
    }
    names = [name for name, _ in named_leaves(batch)]
    parts = tuple(_part(batch, names, columns, index) for index in range(len(sizes)))
    return Microbatches(parts, tuple(sizes))


def fingerprint(batch: Any) -> str:
    """Return a short text that differs when shapes or contents of two batches differ."""
    found = []
    for name, leaf in named_leaves(plain_batch(batch)):
        if isinstance(leaf, Tensor):
            found.append(f"{name}:{tuple(leaf.shape)}:{leaf.dtype}:{_checksum(leaf):08x}")
        else:
            found.append(f"{name}:{leaf!r:.60}:{zlib.crc32(repr(leaf).encode()):08x}")
    return " ".join(found)


def _checksum(tensor: Tensor) -> int:
    data = tensor.detach().cpu().contiguous()
    size = data.numel() * data.element_size()
    return zlib.crc32((ctypes.c_char * size).from_address(data.data_ptr())) if size else 0


def _part(
    batch: Any, names: Sequence[str], columns: Mapping[str, tuple[Tensor, ...]], index: int
) -> Any:
    following = iter(names)

    def pick(leaf: Any) -> Any:
        name = next(following)
        return columns[name][index] if name in columns else leaf

    return map_tree(pick, batch)


def plain_batch(batch: Any) -> Any:
    """Return ``batch`` with mappings (a tokenizer's output) as dictionaries, arrays as tensors.

    Raises:
        BatchError: if a leaf is of a type without values to compare.
    """
    plain = map_tree(_plain_leaf, batch)
    for name, leaf in named_leaves(plain):
        if not isinstance(leaf, _PLAIN):
            raise BatchError(_not_plain(name, leaf))
    if odd := [leaf for leaf in leaves(plain) if not isinstance(leaf, _PLAIN)]:
        raise BatchError(_not_plain("a leaf", odd[0]))
    return plain


def _plain_leaf(leaf: Any) -> Any:
    if isinstance(leaf, _PLAIN):
        return leaf
    if isinstance(leaf, Mapping):
        return map_tree(_plain_leaf, dict(leaf))
    if isinstance(leaf, torch.Size):
        return tuple(leaf)
    if hasattr(leaf, "__array_interface__"):
        try:
            return torch.tensor(leaf)
        except (TypeError, ValueError, RuntimeError) as error:
            msg = f"the batch holds a {type(leaf).__name__} that is no tensor's: {error}"
            raise BatchError(msg) from error
    return leaf


def _not_plain(name: str, leaf: Any) -> str:
    return (
        f"{name} of the batch is a {type(leaf).__name__}, whose values cannot be compared from "
        "step to step; a batch is made of tensors, numbers, strings, and containers of them"
    )


def check_split(batch: Any, split: Split | None) -> None:
    """Refuse names in ``split`` that ``batch`` does not have.

    Raises:
        BatchError: naming those that are near.
    """
    batch = plain_batch(batch)
    parts = batch if _is_presplit(batch) else [batch]
    known = [name for part in parts for name, _ in _nodes(part)]
    for name in split or {}:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=3) or sorted(set(known))[:8]
            msg = f"split names {name!r}, which the batch does not have; near it: {', '.join(near)}"
            raise BatchError(msg)


def _nodes(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``(path, node)`` of all leaves, as ``named_leaves`` calls them, and containers."""
    if isinstance(tree, dict):
        items = [(str(key), child) for key, child in tree.items()]
    elif isinstance(tree, list | tuple):
        items = [(str(index), child) for index, child in enumerate(tree)]
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        items = [(field.name, getattr(tree, field.name)) for field in dataclasses.fields(tree)]
    else:
        yield name or "batch", tree
        return
    if name:
        yield name, tree
    for key, child in items:
        yield from _nodes(child, f"{name}.{key}" if name else key)


def _check_no_rows_in_lists(batch: Any, rows: int, split: Split) -> None:
    """Refuse lists with one Python value per row: they cannot be split as tensors are."""
    for name, node in _nodes(batch):
        if type(node) not in {list, tuple} or len(node) != rows:
            continue
        is_named = any(key in split and split[key] is None for key in _keys(name))
        if not is_named and not any(isinstance(leaf, Tensor) for leaf in leaves(node)):
            msg = (
                f"{name} of the batch is a {type(node).__name__} of {rows} values, as many as "
                "there are rows, and only tensors are split; make it a tensor, or give it whole "
                f'to every micro-batch: split={{"{name}": None}}'
            )
            raise BatchError(msg)


def _is_presplit(batch: Any) -> bool:
    return isinstance(batch, list) and bool(batch) and not isinstance(batch[0], Tensor)


def _even(rows: int, parts: int) -> list[range]:
    small, extra = divmod(rows, parts)
    return [range(small + (1 if index < extra else 0)) for index in range(parts)]


def _tensors(batch: Any, split: Split | None) -> list[tuple[str, Tensor, int | None]]:
    found = []
    for name, leaf in named_leaves(batch):
        if isinstance(leaf, Tensor):
            found.append((name, leaf, dim_of_rows(name, leaf, split)))
    return found


def dim_of_rows(name: str, leaf: Tensor, split: Split | None) -> int | None:
    """Return the dim of a batch's leaf that holds its rows; None if it is given whole."""
    for key in _keys(name):
        if split and key in split:
            return split[key]
    return 0 if leaf.dim() > 0 else None


def _keys(name: str) -> list[str]:
    """Names that ``split`` may call a leaf by: its own, then those of what holds it."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts), 0, -1)]


def _num_rows(batch: Any, split: Split | None) -> int:
    rows = {name: leaf.shape[dim] for name, leaf, dim in _tensors(batch, split) if dim is not None}
    if not rows:
        msg = "the batch has no tensor with rows to split; a batch holds at least one"
        raise BatchError(msg)
    if len(set(rows.values())) > 1:
        found = ", ".join(f"{name} has {count}" for name, count in rows.items())
        msg = (
            f"leaves of the batch disagree about the number of rows: {found}; say which dim holds "
            'the rows, or None to give a leaf whole to every micro-batch: split={"name": None}'
        )
        raise BatchError(msg)
    count = next(iter(rows.values()))
    if count == 0:
        msg = "the batch has no rows"
        raise BatchError(msg)
    return int(count)
