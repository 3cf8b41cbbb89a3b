"""Forwards alone: what evaluation and prediction run.

Rank r holds stages r, P + r, 2P + r, ... and goes through them depth first, in groups of P
micro-batches or a few more, as the interleaved schedule does. All of it takes V M + P - 1
forwards from M = P on. Nothing is kept for a backward. For P=2, M=4, V=2::

    rank 0: 0F0 0F1 2F0 2F1 0F2 0F3 2F2 2F3
    rank 1: 1F0 1F1 3F0 3F1 1F2 1F3 3F2 3F3
"""

from __future__ import annotations

from intandem.ir import Placement, Schedule
from intandem.schedules.counts import require_counts, require_stages
from intandem.schedules.depth_first import DepthFirst, groups_of_at_least


def forward_only(num_ranks: int, num_microbatches: int, stages_per_rank: int = 1) -> Schedule:
    """Build a schedule without backwards. It cannot train.

    Args:
        num_ranks: P, at least 1.
        num_microbatches: M, at least 1.
        stages_per_rank: V, at least 1.

    Raises:
        ValueError: if a count is less than 1.
    """
    require_counts(num_ranks, num_microbatches)
    require_stages(stages_per_rank)
    groups = groups_of_at_least(num_ranks, num_microbatches)
    order = DepthFirst(num_ranks, stages_per_rank, groups)
    rows = tuple(tuple(order.forwards(rank)) for rank in range(num_ranks))
    placement = Placement.loop(num_ranks, stages_per_rank)
    return Schedule("forward-only", placement, num_microbatches, rows)
