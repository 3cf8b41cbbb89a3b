"""1F1B with a deeper warm-up (eager-1F1B): https://arxiv.org/abs/2211.05322.

With P ranks, rank r holds at most 2(P - r) - 1 activations, where 1F1B holds P - r. Two
neighbours are then two micro-batches apart, not one, so a transfer of c seconds each way is
hidden behind the work on the other as long as 2c is no more than the F + B of a stage. What is
paid for transfers is 2(P - 1)c per step; 1F1B pays it again and again, as it goes. Without
transfers both take as long. For P=3, M=6::

    rank 0: 0F0 0F1 0F2 0F3 0F4 0B0 0F5 0B1 0B2 0B3 0B4 0B5
    rank 1: 1F0 1F1 1F2 1B0 1F3 1B1 1F4 1B2 1F5 1B3 1B4 1B5
    rank 2: 2F0 2B0 2F1 2B1 2F2 2B2 2F3 2B3 2F4 2B4 2F5 2B5
"""

from __future__ import annotations

from intandem.ir import Placement, Schedule
from intandem.schedules.counts import require_counts
from intandem.schedules.one_f_one_b import alternating_row


def one_f_one_b_eager(num_ranks: int, num_microbatches: int) -> Schedule:
    """Build the eager 1F1B schedule, one stage per rank.

    Args:
        num_ranks: P, at least 1.
        num_microbatches: M, at least 1.

    Raises:
        ValueError: if either count is less than 1.
    """
    require_counts(num_ranks, num_microbatches)
    rows = tuple(
        alternating_row(rank, num_microbatches, num_warmup=2 * (num_ranks - rank) - 1)
        for rank in range(num_ranks)
    )
    return Schedule("1f1b-eager", Placement.loop(num_ranks), num_microbatches, rows)
