"""Naive model parallelism: one micro-batch at a time, through all stages and back.

Only one rank works at any time: the baseline that pipelining improves on. For P=3, M=2::

    rank 0: 0F0 0B0 0F1 0B1
    rank 1: 1F0 1B0 1F1 1B1
    rank 2: 2F0 2B0 2F1 2B1

The first forward of micro-batch 1 needs nothing of micro-batch 0, but rank 0 starts it only
after its backward of micro-batch 0.
"""

from __future__ import annotations

from intandem.ir import Action, ActionKind, Placement, Schedule
from intandem.schedules.counts import require_counts


def naive(num_ranks: int, num_microbatches: int) -> Schedule:
    """Build the naive schedule, one stage per rank. Each rank holds one activation.

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
            for mb in range(num_microbatches)
            for kind in (ActionKind.F, ActionKind.B)
        )
        for rank in range(num_ranks)
    )
    return Schedule("naive", Placement.loop(num_ranks), num_microbatches, rows)
