"""Chimera: https://arxiv.org/abs/2107.06925, figure 3; units joined by direct concatenation.

Two pipelines in opposite directions: rank r holds stage r for one half of the micro-batches and
stage P - 1 - r for the other, so the weights are held twice and their gradients are added up at the
end. P micro-batches make a unit, half of them each way, in the order that 1F1B has when F and B
take one slot each; units follow one another without a gap. For P=4, M=4::

    rank 0: 0F0 0F1 3F2 3B2 3F3 3B3 0B0 0B1
    rank 1: 1F0 2F2 1F1 2F3 2B2 1B0 2B3 1B1
    rank 2: 1F2 2F0 1F3 2F1 2B0 1B2 2B1 1B3
    rank 3: 0F2 0F3 3F0 3B0 3F1 3B1 0B2 0B3

Where F and B take equally long, the idle share is (P - 2)/(2M + P - 2), against (P - 1)/(M + P - 1)
for 1F1B. Where B takes 2F, a single unit idles for 2(P - 2)F and each further unit adds (P - 2)F,
so with many micro-batches 1F1B is faster. Rank r holds P/2 + 1 + min(r, P - 1 - r) activations.
The paper asks for a multiple of P micro-batches. Here the rest is shared out over the units, which
then have a few more.
"""

from __future__ import annotations

from intandem.ir import Placement, Schedule
from intandem.schedules.counts import require_counts, require_even_ranks
from intandem.schedules.depth_first import even_groups
from intandem.schedules.slots import entries_of, in_slot_order


def chimera(num_ranks: int, num_microbatches: int) -> Schedule:
    """Build the Chimera schedule, each stage on two ranks.

    Args:
        num_ranks: P, even: the middle one of an odd number would hold one stage twice.
        num_microbatches: M, at least 1; any number. Of an odd number, one more goes down than up.

    Raises:
        ScheduleError: if the number of ranks is odd.
        ValueError: if a count is less than 1.
    """
    require_counts(num_ranks, num_microbatches)
    require_even_ranks(num_ranks, "chimera", "hanayo / 1f1b")
    num_down = (num_microbatches + 1) // 2
    groups = even_groups(num_down, max(1, num_microbatches // num_ranks))
    down = entries_of(groups, lap=num_ranks, num_laps=1)
    up = down[: num_microbatches - num_down]
    placement = Placement.bidirectional(num_ranks)
    rows = in_slot_order(placement, num_ranks, down + up)
    return Schedule("chimera", placement, num_microbatches, rows)
