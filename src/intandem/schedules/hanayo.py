"""Hanayo: https://arxiv.org/abs/2308.15762. Chimera's order without a second copy of the weights.

Stages run down the ranks and back up, in waves: rank r holds stages r, 2P - 1 - r, 2P + r, ..., two
per wave, and hands over to itself at a turn. One wave is Chimera of 2P ranks cut in half: what went
up on the other half comes back here. P micro-batches make a unit, in the order they have when F and
B take one slot each; units follow one another without a gap. For P=2, M=4, V=2::

    rank 0: 0F0 0F1 3F0 3B0 3F1 3B1 0B0 0F2 0B1 0F3 3F2 3B2 3F3 3B3 0B2 0B3
    rank 1: 1F0 2F0 1F1 2F1 2B0 1B0 2B1 1B1 1F2 2F2 1F3 2F3 2B2 1B2 2B3 1B3

With V stages per rank and where F and B take equally long, the idle share is
(P - 1)/(V M + P - 1) from M = P on. Where B takes 2F, a single unit idles for 4(P - 1)F and each
further unit adds 2(P - 1)F, so with many micro-batches the interleaved schedule is faster. Rank r
holds (V - 1)P + r + 1 stage activations. Where P does not divide M, the rest is shared out over
the units, which then have a few micro-batches more.
"""

from __future__ import annotations

from intandem.errors import ScheduleError
from intandem.ir import Placement, Schedule
from intandem.schedules.counts import require_counts, require_stages
from intandem.schedules.depth_first import groups_of_at_least
from intandem.schedules.slots import entries_of, in_slot_order


def hanayo(num_ranks: int, num_microbatches: int, stages_per_rank: int = 2) -> Schedule:
    """Build the Hanayo schedule.

    Args:
        num_ranks: P, at least 1.
        num_microbatches: M, at least 1; any number.
        stages_per_rank: V, even: two per wave. The default is one wave; more waves idle less and
            send more.

    Raises:
        ScheduleError: if the number of stages per rank is odd.
        ValueError: if a count is less than 1.
    """
    require_counts(num_ranks, num_microbatches)
    require_stages(stages_per_rank)
    if stages_per_rank % 2:
        remedy = f"use stages_per_rank={stages_per_rank + 1}, or interleaved"
        msg = f"hanayo needs an even number of stages per rank, got {stages_per_rank}; {remedy}"
        raise ScheduleError(msg)
    groups = groups_of_at_least(num_ranks, num_microbatches)
    entries = entries_of(groups, lap=2 * num_ranks, num_laps=stages_per_rank // 2)
    placement = Placement.wave(num_ranks, stages_per_rank)
    rows = in_slot_order(placement, 2 * num_ranks, entries)
    return Schedule("hanayo", placement, num_microbatches, rows)
