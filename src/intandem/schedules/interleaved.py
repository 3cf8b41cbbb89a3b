"""Interleaved 1F1B, depth first (Megatron-LM): https://arxiv.org/abs/2104.04473, figure 4 bottom.

Rank r holds stages r, P + r, 2P + r, ... With V stages per rank the pipeline fills and drains V
times as fast as 1F1B with stages V times as long: the idle share is (P - 1)/(V M + P - 1). A rank
goes through its stages in groups of P micro-batches, and starts its first backward after
(V - 1)P + 2(P - r) - 1 forwards, so rank 0 holds V P + P - 1 stage activations.
For P=2, M=4, V=2::

    rank 0: 0F0 0F1 2F0 2F1 0F2 2B0 0F3 2B1 2F2 0B0 2F3 0B1 2B2 2B3 0B2 0B3
    rank 1: 1F0 1F1 3F0 3B0 3F1 3B1 1F2 1B0 1F3 1B1 3F2 3B2 3F3 3B3 1B2 1B3

Megatron-LM asks for a multiple of P micro-batches. Here the rest is shared out over the groups,
which then have P or a few more each: the idle share stays what the formula says, and a rank holds
V - 1 more for each micro-batch that a group has more than P. With fewer than P micro-batches there
is one group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intandem.ir import Placement, Schedule
from intandem.schedules.alternation import alternate
from intandem.schedules.counts import require_counts, require_stages
from intandem.schedules.depth_first import DepthFirst, groups_of_at_least

if TYPE_CHECKING:
    from intandem.ir import Action


def interleaved(num_ranks: int, num_microbatches: int, stages_per_rank: int = 2) -> Schedule:
    """Build the interleaved 1F1B schedule.

    Args:
        num_ranks: P, at least 1.
        num_microbatches: M, at least 1; any number.
        stages_per_rank: V, at least 1; 1F1B with the warm-up of ``1f1b-eager`` if it is 1.

    Raises:
        ValueError: if a count is less than 1.
    """
    require_counts(num_ranks, num_microbatches)
    require_stages(stages_per_rank)
    groups = groups_of_at_least(num_ranks, num_microbatches)
    order = DepthFirst(num_ranks, stages_per_rank, groups)
    rows = (_row(order, rank) for rank in range(num_ranks))
    placement = Placement.loop(num_ranks, stages_per_rank)
    return Schedule("interleaved", placement, num_microbatches, tuple(rows))


def _row(order: DepthFirst, rank: int) -> tuple[Action, ...]:
    ahead = (order.stages_per_rank - 1) * order.groups[0]
    num_warmup = ahead + 2 * (order.num_ranks - rank) - 1
    return tuple(alternate(order.forwards(rank), order.backwards(rank), num_warmup))
