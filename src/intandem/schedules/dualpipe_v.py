"""DualPipe-V: DualPipe cut in half, https://github.com/deepseek-ai/DualPipe (DualPipeV).

Rank r holds stages r and 2P - 1 - r: what goes up in DualPipe of 2P ranks is what comes back here,
so one copy of the weights is enough. The forward of one stage overlaps with the backward of the
other (marked by an ampersand). Every rank holds 2P + 1 stage activations. For P=2, M=4::

    rank 0: 0F0 0F1 0F2 3F0 3I0 3W0 3F1 0F3& 3B1 3F2& 0B0 3B2 3F3& 0B1 3B3 0I2 0W2 0I3 0W3
    rank 1: 1F0 2F0 1F1 2F1 1F2 2B0 2F2& 1B0 1F3& 2B1 2F3& 1B1 2B2 1B2 2I3 1I3 2W3 1W3

The idle time is that of DualPipe of 2P ranks. The public code asks for at least 2P micro-batches;
with fewer, this is the order for 2P with the rest left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intandem.ir import Placement
from intandem.schedules.counts import require_counts
from intandem.schedules.folded import Stream, folded_row, folded_schedule

if TYPE_CHECKING:
    from intandem.ir import Schedule


def dualpipe_v(num_ranks: int, num_microbatches: int) -> Schedule:
    """Build the DualPipe-V schedule, two stages per rank.

    Args:
        num_ranks: P, at least 1.
        num_microbatches: M, at least 1; any number. At least 2P to overlap and idle as stated.

    Raises:
        ValueError: if a count is less than 1.
    """
    require_counts(num_ranks, num_microbatches)
    rows = []
    for rank in range(num_ranks):
        stages = (rank, 2 * num_ranks - 1 - rank)
        near, far = (Stream(stage, 0, num_microbatches) for stage in stages)
        rows.append(folded_row((near, far), rank, num_ranks))
    return folded_schedule("dualpipe-v", Placement.vee(num_ranks), num_microbatches, rows)
