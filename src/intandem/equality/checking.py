"""``check``: one step plain and one in tandem."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from intandem.equality.comparison import TOLERANCE, Equality, compare, numbers_of
from intandem.equality.witness import Splitting, one_process
from intandem.pipeline import Options, Pipeline
from intandem.recorder.stage_chain import as_module

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from intandem.ir import Schedule
    from intandem.recorder import Arguments
    from intandem.runtime.microbatch import Split


def check(  # noqa: PLR0913  (the public surface)
    model: nn.Module | Sequence[nn.Module],
    batch: Any,
    loss: Callable[[Any, Any], Any] | None = None,
    *,
    ranks: int = 2,
    schedule: str | Schedule = "auto",
    microbatches: int = 4,
    recompute: str | bool = "auto",
    split: Split | None = None,
    count: Callable[[Any], float] | None = None,
    inputs: Callable[[Any], Arguments] | None = None,
    split_points: Sequence[str] | None = None,
    blocks: Sequence[str | type[nn.Module]] = (),
    seed: int = 0,
    tolerance: float = TOLERANCE,
) -> Equality:
    """Run one step plain and one in tandem, on copies of ``model``, and compare.

    Args:
        model: left as it is. Use float64 (``model.double()``) to tell a mistake from rounding.
        batch: one batch.
        loss: as for ``Pipeline``.
        ranks: of the pipeline.
        schedule: as for ``Pipeline``.
        microbatches: as for ``Pipeline``.
        recompute: as for ``Pipeline``.
        split: as for ``Pipeline``.
        count: as for ``Pipeline``.
        inputs: as for ``Pipeline``.
        split_points: as for ``Pipeline``.
        blocks: as for ``Pipeline``.
        seed: keys random draws.
        tolerance: up to which numbers count as equal.
    """
    whole = as_module(model)
    plain, ours = copy.deepcopy(whole), copy.deepcopy(whole)
    splitting = Splitting(microbatches, split, count, inputs, tuple(blocks))
    expected = one_process(plain, batch, loss, splitting, seed=seed)
    with Pipeline(
        ours,
        example=batch,
        loss=loss,
        ranks=ranks,
        schedule=schedule,
        microbatches=microbatches,
        recompute=recompute,
        split=split,
        count=count,
        inputs=inputs,
        split_points=split_points,
        blocks=blocks,
        options=Options(seed=seed),
    ) as pipe:
        value = float(pipe.step(batch))
    return compare(numbers_of(ours, value), expected, tolerance=tolerance)
