"""Where two runs of a step first differ: the first call in forward, the last block in backward."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from intandem.equality.comparison import value_error

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from intandem.equality.trace import Key, Result, Trace


class Difference(NamedTuple):
    """The first call whose results differ.

    Attributes:
        key: which call.
        microbatch: of which micro-batch; None where rows of all were joined.
        result: what was found.
        error: relative in norm.
        draws: whether the call draws random numbers.
    """

    key: Key
    microbatch: int | None
    result: Result
    error: float
    draws: bool


def first_difference(found: Trace, expected: Trace, least: float) -> Difference | None:
    """Return the first call, in forward order, that gave other results for some micro-batch.

    Args:
        found: of a run.
        expected: of the run it is held against.
        least: error from which on results differ.
    """
    for key, of_microbatch in expected.calls.items():
        for microbatch in sorted(of_microbatch):
            reference = of_microbatch[microbatch][0].tensors
            if not _is_same_call(found, expected, key, microbatch):
                continue
            for result in found.results(key, microbatch):
                error = _error(result.tensors, reference)
                if error > least:
                    draws = key in expected.drawing or key in found.drawing
                    return Difference(key, microbatch, result, error, draws)
    return None


class RowsCompared(NamedTuple):
    """Rows of micro-batches against rows of the whole batch.

    Attributes:
        first: the first call that gives rows other results; None if every call gives the same.
        mixing: the first call before it whose result is not made of rows, such as a matrix of all
            pairs of them.
    """

    first: Difference | None
    mixing: Key | None


def compare_rows(parts: Trace, whole: Trace, num_microbatches: int, least: float) -> RowsCompared:
    """Look for the first call that gives rows other results in micro-batches than in the batch.

    Args:
        parts: of a run in micro-batches.
        whole: of one call on the whole batch.
        num_microbatches: of ``parts``.
        least: error from which on results differ.
    """
    mixing: Key | None = None
    for key, of_microbatch in whole.calls.items():
        results = [parts.results(key, index) for index in range(num_microbatches)]
        if not all(results) or 0 not in of_microbatch:
            continue
        columns = list(zip(*(found[0].tensors for found in results), strict=False))
        for tensors, reference in zip(columns, of_microbatch[0][0].tensors, strict=False):
            if not reference.is_floating_point() or reference.dim() == 0:
                continue
            joined = _joined(tensors, reference)
            if joined is None:
                alike = all(tensor.shape == reference.shape for tensor in tensors)
                mixing = mixing if alike else mixing or key
                continue
            error = _error_of_rows(joined, reference, least)
            if error > least:
                found = Difference(key, None, results[0][0], error, draws=False)
                return RowsCompared(found, mixing)
    return RowsCompared(None, mixing)


def last_wrong_block(
    errors: Mapping[str, float], expected: Trace, least: float
) -> tuple[str, str] | None:
    """Return the block nearest to the loss with a wrong gradient, and that parameter's name.

    The block is empty for a parameter that glue uses.

    Args:
        errors: of gradients, by parameter.
        expected: says in which order blocks run.
        least: error from which on a gradient is wrong.
    """
    wrong = [name for name, error in errors.items() if error > least]
    for key in reversed([key for key in expected.calls if key.is_block]):
        if own := [name for name in wrong if name.startswith(f"{key.name}.")]:
            return key.name, max(own, key=errors.__getitem__)
    return ("", wrong[-1]) if wrong else None


def common_factor(
    found: Mapping[str, Tensor | None], expected: Mapping[str, Tensor | None]
) -> float | None:
    """Return what every gradient is multiplied by, if all are by the same."""
    pairs = list(_pairs(found, expected))
    across = sum(float((f * e).sum()) for f, e in pairs)
    squares = sum(float((e * e).sum()) for _, e in pairs)
    if squares == 0 or not math.isfinite(across):
        return None
    factor = across / squares
    rest = sum(float((f - factor * e).square().sum()) for f, e in pairs)
    return factor if rest <= 1e-18 * squares * max(factor * factor, 1.0) else None


def _pairs(
    found: Mapping[str, Tensor | None], expected: Mapping[str, Tensor | None]
) -> Iterator[tuple[Tensor, Tensor]]:
    for name, gradient in expected.items():
        other = found.get(name)
        if gradient is not None and other is not None:
            yield other.to_dense().double(), gradient.to_dense().double()


def _is_same_call(found: Trace, expected: Trace, key: Key, microbatch: int) -> bool:
    """Tell glue that cannot be matched: a line that one of the runs passes more often."""
    if key.is_block:
        return True
    return found.num_calls(key, microbatch) == expected.num_calls(key, microbatch)


def _error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    if len(found) != len(expected):
        return math.inf
    pairs = zip(found, expected, strict=True)
    return max((value_error(one, other) for one, other in pairs), default=0.0)


def _error_of_rows(found: Tensor, expected: Tensor, least: float) -> float:
    """Return the error of rows that may be in another order: ``cat([x, y])`` has x's rows first."""
    error = value_error(found, expected)
    if error <= least or found.dim() == 0:
        return error
    return min(error, value_error(_sorted_rows(found), _sorted_rows(expected)))


def _sorted_rows(tensor: Tensor) -> Tensor:
    """Return rows in an order that depends on what is in them alone."""
    rows = tensor.reshape(len(tensor), -1).double()
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(rows.shape[1], generator=generator, dtype=rows.dtype).to(rows.device)
    return rows[(rows.nan_to_num() @ weights).argsort()]


def _joined(parts: Sequence[Tensor], whole: Tensor) -> Tensor | None:
    """Join micro-batches' tensors on the dim that adds up to the whole batch's, if there is one."""
    for dim in range(whole.dim()):
        rest = [p for p in parts if p.dim() == whole.dim()]
        sizes = [p.shape[:dim] + p.shape[dim + 1 :] for p in rest]
        alike = all(size == whole.shape[:dim] + whole.shape[dim + 1 :] for size in sizes)
        if (
            len(rest) == len(parts)
            and alike
            and sum(p.shape[dim] for p in rest) == whole.shape[dim]
        ):
            return torch.cat(list(parts), dim)
    return None
