"""ZB-H2: https://arxiv.org/abs/2401.10241, figure 3 (handcrafted).

Like ZB-H1 with a warm-up twice as deep, that of ``1f1b-eager``, which fills the wait for the first
backward, and W's that wait twice as long, so that the last I's come back to rank 0 without any in
between. Ranks start and end one after another, each after the same time. For P=3, M=6::

    rank 0: 0F0 0F1 0F2 0F3 0F4 0I0 0W0 0F5 0I1 0W1 0I2 0W2 0I3 0W3 0I4 0W4 0I5 0W5
    rank 1: 1F0 1F1 1F2 1I0 1F3 1I1 1F4 1I2 1W0 1F5 1I3 1W1 1I4 1W2 1I5 1W3 1W4 1W5
    rank 2: 2F0 2I0 2F1 2I1 2F2 2I2 2F3 2I3 2F4 2I4 2W0 2F5 2I5 2W1 2W2 2W3 2W4 2W5

Rank 0 takes M (F+I+W) + (P-1) max(F+I-2W, 0) for M >= 2P-1, equal stages, and no transfers: no
bubble per rank with equal times. Under a flush, the ranks' starts and ends leave (P-1) F idle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intandem.schedules.one_f_one_b_eager import one_f_one_b_eager
from intandem.schedules.split_backwards import split_backwards

if TYPE_CHECKING:
    from intandem.ir import Schedule


def zb_h2(num_ranks: int, num_microbatches: int) -> Schedule:
    """Build the ZB-H2 schedule, one stage per rank.

    Every rank holds at most min(M, 2P-1) activations.

    Args:
        num_ranks: P, at least 1.
        num_microbatches: M, at least 1.

    Raises:
        ValueError: if either count is less than 1.
    """
    whole = one_f_one_b_eager(num_ranks, num_microbatches)
    return split_backwards(whole, "zb-h2", lambda rank: 2 * rank)
