"""Split a batch into micro-batches, and tell whether two ranks hold the same batch."""

from __future__ import annotations

import ctypes
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from intandem.errors import BatchError
from intandem.recorder.trees import map_tree, named_leaves

Split = Mapping[str, int | None]
"""By leaf (or first part of its path): the dim to split, or None to give it whole to each."""


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
        BatchError: if leaves disagree about the number of rows, or there is nothing to split.
    """
    batch = plain_batch(batch)
    if _is_presplit(batch):
        parts = tuple(map(plain_batch, batch))
        return Microbatches(parts, tuple(_num_rows(part, split) for part in parts))
    rows = _num_rows(batch, split)
    sizes = [len(part) for part in _even(rows, min(num_microbatches, rows))]
    columns = {
        name: torch.split(leaf, sizes, dim)
        for name, leaf, dim in _tensors(batch, split)
        if dim is not None
    }
    return Microbatches(
        tuple(_part(batch, columns, index) for index in range(len(sizes))), tuple(sizes)
    )


def fingerprint(batch: Any) -> str:
    """Return a short text that differs when shapes or contents of two batches differ."""
    found = []
    for name, leaf in named_leaves(plain_batch(batch)):
        if isinstance(leaf, Tensor):
            found.append(f"{name}:{tuple(leaf.shape)}:{leaf.dtype}:{_checksum(leaf):08x}")
        else:
            found.append(f"{name}:{leaf!r:.60}")
    return " ".join(found)


def _checksum(tensor: Tensor) -> int:
    data = tensor.detach().cpu().contiguous()
    size = data.numel() * data.element_size()
    return zlib.crc32((ctypes.c_char * size).from_address(data.data_ptr())) if size else 0


def _part(batch: Any, columns: dict[str, tuple[Tensor, ...]], index: int) -> Any:
    names = iter([name for name, _ in named_leaves(batch)])

    def pick(leaf: Any) -> Any:
        name = next(names)
        return columns[name][index] if name in columns else leaf

    return map_tree(pick, batch)


def plain_batch(batch: Any) -> Any:
    """Return a mapping of another type (a tokenizer's output) as a dictionary."""
    return dict(batch) if isinstance(batch, Mapping) and type(batch) is not dict else batch


def _is_presplit(batch: Any) -> bool:
    return isinstance(batch, list) and bool(batch) and not isinstance(batch[0], Tensor)


def _even(rows: int, parts: int) -> list[range]:
    small, extra = divmod(rows, parts)
    return [range(small + (1 if index < extra else 0)) for index in range(parts)]


def _tensors(batch: Any, split: Split | None) -> list[tuple[str, Tensor, int | None]]:
    found = []
    for name, leaf in named_leaves(batch):
        if isinstance(leaf, Tensor):
            found.append((name, leaf, _dim(name, leaf, split or {})))
    return found


def _dim(name: str, leaf: Tensor, split: Split) -> int | None:
    for key in (name, name.split(".")[0]):
        if key in split:
            return split[key]
    return 0 if leaf.dim() > 0 else None


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
