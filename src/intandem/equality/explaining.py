"""From a difference to words: the place, and what was seen there."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from torch.nn.modules.batchnorm import _BatchNorm

from intandem.equality.differences import (
    Difference,
    common_factor,
    compare_rows,
    first_difference,
    last_wrong_block,
)
from intandem.equality.findings import REMEDY, Cause, Finding

if TYPE_CHECKING:
    from torch import nn

    from intandem.equality.comparison import Equality, Numbers
    from intandem.equality.trace import Key, Trace

SMALL = 1e-6
"""Of the size of a difference in the end: what is smaller along the way is not what made it."""


class Run(NamedTuple):
    """One step: its numbers, what its calls returned, and the model it was run on."""

    numbers: Numbers
    trace: Trace
    model: nn.Module


def least_of(equality: Equality) -> float:
    """Return the error from which on a call along the way counts as different."""
    size = equality.max_error
    return max(equality.tolerance, SMALL * size if math.isfinite(size) else 0.0)


def worst_of(equality: Equality) -> str:
    """Name the worst number."""
    worst = equality.ranked(1)
    if worst and worst[0].error > equality.loss_error:
        return f"{worst[0].kind} {worst[0].name}"
    return "loss"


def difference_of(found: Run, expected: Run, equality: Equality) -> Difference | None:
    """Return the first call in forward order with other results."""
    return first_difference(found.trace, expected.trace, least_of(equality))


def is_weighed_wrong(found: Run, expected: Run, equality: Equality) -> bool:
    """Tell whether every gradient is off by the same factor, though outputs are the same."""
    if equality.max_output_error > equality.tolerance:
        return False
    factor = common_factor(found.numbers.gradients, expected.numbers.gradients)
    return factor is not None and abs(factor - 1) > SMALL


def explained(
    cause: Cause, found: Run, expected: Run, equality: Equality, difference: Difference | None
) -> Finding:
    """Say where a run differs from the one it is held against."""
    if difference is not None:
        place = place_of(difference, found)
        by = f"by {difference.error:.1e}" if math.isfinite(difference.error) else "even in shape"
        why = f"the first results that differ in forward, {by}"
    else:
        place, why = _in_backward(found, expected, equality)
    return Finding(cause, equality.max_error, place, why, REMEDY[cause])


def place_of(difference: Difference, run: Run) -> str:
    """Name a call: ``block encoder.1 (BatchNorm1d), micro-batch 2, stage 1``."""
    parts = [_call(difference.key, run)]
    if difference.microbatch is not None:
        parts.append(f"micro-batch {difference.microbatch}")
    if difference.result.stage is not None:
        parts.append(f"stage {difference.result.stage}")
    if difference.result.recomputed:
        parts.append("run again for its backward")
    return ", ".join(parts)


def _call(key: Key, run: Run) -> str:
    if not key.is_block:
        return f"{key.name} at {key.location}"
    kind = type(run.model.get_submodule(key.name)).__name__
    again = f", call {key.number + 1}" if key.number else ""
    return f"block {key.name} ({kind}{again})"


def _in_backward(found: Run, expected: Run, equality: Equality) -> tuple[str, str]:
    """Say what differs though every call of forward returned the same."""
    if equality.max_gradient_error > equality.tolerance:
        factor = common_factor(found.numbers.gradients, expected.numbers.gradients)
        if factor is not None:
            return "the loss", f"every gradient is {factor:.6g} times what it should be"
        block = last_wrong_block(equality.gradient_errors, expected.trace, least_of(equality))
        if block is not None:
            return _gradient_place(block, found), (
                "forward is the same; of the wrong gradients this is the one nearest to the loss, "
                f"off by {equality.gradient_errors[block[1]]:.1e}"
            )
    if equality.loss_error > equality.tolerance:
        return "the loss", "every call of forward and every gradient is the same"
    if equality.max_output_error > equality.tolerance:
        return worst_of(equality), "every call of forward is the same, what is returned is not"
    return worst_of(equality), "forward, loss and gradients are the same"


def _gradient_place(block: tuple[str, str], run: Run) -> str:
    name, parameter = block
    if not name:
        return f"gradient of {parameter}, used between blocks"
    kind = type(run.model.get_submodule(name)).__name__
    return f"block {name} ({kind}), gradient of {parameter}"


def explained_microbatching(
    parts: Run, whole: Run, equality: Equality, num_microbatches: int
) -> Finding:
    """Say why micro-batches do not give what one call on the whole batch gives."""
    least = least_of(equality)
    difference, mixing = compare_rows(parts.trace, whole.trace, num_microbatches, least)
    error = max(equality.loss_error, equality.max_gradient_error)
    if error <= equality.tolerance:
        name = worst_of(equality).removeprefix("buffer ")
        return Finding(
            Cause.MICROBATCHING, equality.max_error, f"buffer {name}",
            "it is updated once per micro-batch; loss and gradients are the same", _ROWS_REMEDY,
        )  # fmt: skip
    if difference is None:
        return Finding(
            Cause.MICROBATCHING, error,
            "the loss" if mixing is None else f"the loss, made of {_call(mixing, parts)}",
            "forward gives every row the same; the loss is neither a mean nor a sum over rows",
            _LOSS_REMEDY,
        )  # fmt: skip
    why = "rows of a batch change each other's results there"
    if difference.key.is_block:
        module = parts.model.get_submodule(difference.key.name)
        norms = [(n, m) for n, m in module.named_modules() if isinstance(m, _BatchNorm)]
        if norms:
            name, norm = norms[0]
            inner = f" of {type(norm).__name__} {name} in it" if name else ""
            why = f"the statistics{inner} are the micro-batch's"
    return Finding(Cause.MICROBATCHING, error, place_of(difference, parts), why, _ROWS_REMEDY)


_ROWS_REMEDY = (
    "the same happens in one process that accumulates gradients over micro-batches; use fewer and "
    "larger ones, or a normalisation that looks at single rows (GroupNorm, LayerNorm), or accept it"
)
_LOSS_REMEDY = (
    "return LossSum(sum, count) from the loss if it is a mean over something else than rows (or "
    "give count=); where it compares rows with each other, give the pipeline "
    "loss=WholeBatchLoss(loss_fn), which computes it once, on the outputs of all micro-batches"
)
