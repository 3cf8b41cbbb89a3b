"""Interleaved, breadth first (looped BFS): https://arxiv.org/abs/2211.05953.

Rank r holds stages r, P + r, 2P + r, ... and takes every micro-batch through one before it goes on
to the next: GPipe with several stages per rank. The idle share is (P - 1)/(V M + P - 1) from M = P
on, as for the depth-first order, and a rank holds all V M stage activations. What it is for: each
stage is gone through once forwards and once backwards, so where parameters are sharded over data
parallel ranks, they are gathered twice per step, not once per group. For P=2, M=3, V=2::

    rank 0: 0F0 0F1 0F2 2F0 2F1 2F2 2B0 2B1 2B2 0B0 0B1 0B2
    rank 1: 1F0 1F1 1F2 3F0 3F1 3F2 3B0 3B1 3B2 1B0 1B1 1B2
"""

from __future__ import annotations

from intandem.ir import Placement, Schedule
from intandem.schedules.counts import require_counts, require_stages
from intandem.schedules.depth_first import DepthFirst


def interleaved_bfs(num_ranks: int, num_microbatches: int, stages_per_rank: int = 2) -> Schedule:
    """Build the breadth-first schedule.

    Args:
        num_ranks: P, at least 1.
        num_microbatches: M, at least 1.
        stages_per_rank: V, at least 1; GPipe if it is 1.

    Raises:
        ValueError: if a count is less than 1.
    """
    require_counts(num_ranks, num_microbatches)
    require_stages(stages_per_rank)
    order = DepthFirst(num_ranks, stages_per_rank, (num_microbatches,))
    rows = tuple((*order.forwards(rank), *order.backwards(rank)) for rank in range(num_ranks))
    placement = Placement.loop(num_ranks, stages_per_rank)
    return Schedule("interleaved-bfs", placement, num_microbatches, rows)
