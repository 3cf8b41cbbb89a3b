"""ZB-H1: https://arxiv.org/abs/2401.10241, figure 2 bottom (handcrafted).

1F1B with the backward split: I goes on to the rank before at once, and the W of micro-batch b
waits on rank r until after the I of micro-batch b + r. No rank holds more than P activations,
what rank 0 of 1F1B holds. For P=3, M=5::

    rank 0: 0F0 0F1 0F2 0I0 0W0 0F3 0I1 0W1 0F4 0I2 0W2 0I3 0W3 0I4 0W4
    rank 1: 1F0 1F1 1I0 1F2 1I1 1W0 1F3 1I2 1W1 1F4 1I3 1W2 1I4 1W3 1W4
    rank 2: 2F0 2I0 2F1 2I1 2F2 2I2 2W0 2F3 2I3 2W1 2F4 2I4 2W2 2W3 2W4

Makespan and longest rank are M (F+I+W) + (P-1)(F+I-W) for M >= P, equal stages with W no longer
than F + I, and no transfers: with equal times, a third of 1F1B's bubble.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intandem.schedules.one_f_one_b import one_f_one_b
from intandem.schedules.split_backwards import split_backwards

if TYPE_CHECKING:
    from intandem.ir import Schedule


def zb_h1(num_ranks: int, num_microbatches: int) -> Schedule:
    """Build the ZB-H1 schedule, one stage per rank.

    Every rank holds at most min(M, P) activations.

    Args:
        num_ranks: P, at least 1.
        num_microbatches: M, at least 1.

    Raises:
        ValueError: if either count is less than 1.
    """
    whole = one_f_one_b(num_ranks, num_microbatches)
    return split_backwards(whole, "zb-h1", lambda rank: rank)
