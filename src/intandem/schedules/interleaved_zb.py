"""Interleaved zero bubble: interleaved 1F1B with the backward split.

https://arxiv.org/abs/2401.10241 splits the backward of 1F1B; the same done to Megatron-LM's
interleaving (https://arxiv.org/abs/2104.04473, figure 4 bottom). Rank r holds stages r, P + r,
2P + r, ... and does F's and I's in the order of ``interleaved``. Each rank starts its first
backward two forwards earlier than the rank before it, and has as much more memory: the W of its
k-th backward waits until after its (k + 2r)-th. For P=2, M=3, V=2::

    rank 0: 0F0 0F1 0F2 2F0 2F1 2F2 2I0 2W0 2I1 2W1 2I2 2W2 0I0 0W0 0I1 0W1 0I2 0W2
    rank 1: 1F0 1F1 1F2 3F0 3I0 3F1 3I1 3F2 3I2 3W0 1I0 3W1 1I1 3W2 1I2 1W0 1W1 1W2

No rank holds more than rank 0 of ``interleaved``, V P + P - 1 stage activations where P divides
M. With equal stages, W no longer than I, M >= 2P and no transfers, the longest rank takes
M V (F+I+W) + (P-1) max(F+I-2W, 0): no bubble per rank with equal times, where ``interleaved``
waits for (P-1)(F+I+W).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intandem.schedules.interleaved import interleaved
from intandem.schedules.split_backwards import split_backwards

if TYPE_CHECKING:
    from intandem.ir import Schedule


def interleaved_zb(num_ranks: int, num_microbatches: int, stages_per_rank: int = 2) -> Schedule:
    """Build the interleaved schedule with split backwards.

    Args:
        num_ranks: P, at least 1.
        num_microbatches: M, at least 1; any number.
        stages_per_rank: V, at least 1.

    Raises:
        ValueError: if a count is less than 1.
    """
    whole = interleaved(num_ranks, num_microbatches, stages_per_rank)
    return split_backwards(whole, "interleaved-zb", lambda rank: 2 * rank)
