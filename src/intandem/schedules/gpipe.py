"""GPipe: https://arxiv.org/abs/1811.06965, figure 2c.

All forwards, then all backwards, so each rank holds M activations. For P=3, M=4::

    rank 0: 0F0 0F1 0F2 0F3 0B0 0B1 0B2 0B3
    rank 1: 1F0 1F1 1F2 1F3 1B0 1B1 1B2 1B3
    rank 2: 2F0 2F1 2F2 2F3 2B0 2B1 2B2 2B3

The paper runs the backwards in descending order of micro-batch, which takes as long; ascending
order adds up each parameter's gradient in the order of every other schedule.
"""

from __future__ import annotations

from intandem.ir import Action, ActionKind, Placement, Schedule
from intandem.schedules.counts import require_counts


def gpipe(num_ranks: int, num_microbatches: int) -> Schedule:
    """Build the GPipe schedule, one stage per rank.

    Args:
        num_ranks: P, at least 1.
        num_microbatches: M, at least 1.

    Raises:
        ValueError: if either count is less than 1.
    """
    require_counts(num_ranks, num_microbatches)
    rows = tuple(
        tuple(
            Action(rank, kind, mb)
            for kind in (ActionKind.F, ActionKind.B)
            for mb in range(num_microbatches)
        )
        for rank in range(num_ranks)
    )
    return Schedule("gpipe", Placement.loop(num_ranks), num_microbatches, rows)
