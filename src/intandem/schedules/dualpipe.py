"""DualPipe: https://arxiv.org/abs/2412.19437, figure 5; order as in the authors' public code.

Two pipelines in opposite directions: rank r holds stage r for the first half of the micro-batches
and stage P - 1 - r for the second, so the weights are held twice and their gradients are added up
at the end. Once both flow, the forward of one direction overlaps with the backward of the other
(marked by an ampersand), which hides what stages send within themselves, such as tokens to experts,
behind each other's work. Every rank holds P + 1 activations. For P=4, M=8::

    rank 0: 0F0 0F1 0F2 3F4 3I4 3W4 3F5 0F3& 3B5 3F6& 0B0 3B6 3F7& 0B1 3B7 0I2 0W2 0I3 0W3
    rank 1: 1F0 2F4 1F1 2F5 1F2 2B4 2F6& 1B0 1F3& 2B5 2F7& 1B1 2B6 1B2 2I7 1I3 2W7 1W3
    rank 2: 1F4 2F0 1F5 2F1 1F6 2B0 2F2& 1B4 1F7& 2B1 2F3& 1B5 2B2 1B6 2I3 1I7 2W3 1W7
    rank 3: 0F4 0F5 0F6 3F0 3I0 3W0 3F1 0F7& 3B1 3F2& 0B4 3B2 3F3& 0B5 3B3 0I6 0W6 0I7 0W7

The public code asks for an even number of at least 2P micro-batches. With others, one direction has
one more, and what the order for 2P asks of missing ones is left out.

The idle time that the authors state, (P/2 - 1)(F&B + B - 3W), is exact for F = I = W and without
transfers between ranks. A transfer of c seconds is hidden in the steady state where the two of a
pair run one after the other; where they overlap it is not, as neither begins before both can: a
pair then costs (P - 1)c/P more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intandem.ir import Placement
from intandem.schedules.counts import require_counts, require_even_ranks
from intandem.schedules.folded import Stream, folded_row, folded_schedule

if TYPE_CHECKING:
    from intandem.ir import Schedule


def dualpipe(num_ranks: int, num_microbatches: int) -> Schedule:
    """Build the DualPipe schedule, each stage on two ranks.

    Args:
        num_ranks: P, even: the middle one of an odd number would hold one stage twice.
        num_microbatches: M, at least 1; any number. At least 2P to overlap and idle as stated.

    Raises:
        ScheduleError: if P is odd.
        ValueError: if a count is less than 1.
    """
    require_counts(num_ranks, num_microbatches)
    require_even_ranks(num_ranks, "dualpipe", "dualpipe-v / 1f1b")
    num_down = (num_microbatches + 1) // 2
    down, up = (0, num_down), (num_down, num_microbatches - num_down)
    rows = []
    for rank in range(num_ranks):
        place = min(rank, num_ranks - 1 - rank)
        near, far = (down, up) if rank == place else (up, down)
        streams = Stream(place, *near), Stream(num_ranks - 1 - place, *far)
        rows.append(folded_row(streams, place, num_ranks // 2))
    placement = Placement.bidirectional(num_ranks)
    return folded_schedule("dualpipe", placement, num_microbatches, rows)
