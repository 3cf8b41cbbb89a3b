"""V-Half: https://arxiv.org/abs/2405.15362, figure 4 middle (controllable memory).

Two stages per rank in a V, half of 1F1B's activations. Passes on their way down the ranks go on
after a slot, so that warm-up and cool-down are less empty than V-Min's. For P=4, M=3::

    rank 0: 0F0 0F1 0F2 7F0 7I0 7F1 7I1 7W0 7W1 7F2 7I2 0I0 7W2 0I1 0W0 0W1 0I2 0W2
    rank 1: 1F0 1F1 6F0 1F2 6F1 6I0 6W0 6I1 6F2 6W1 1I0 6I2 1I1 1W0 6W2 1W1 1I2 1W2
    rank 2: 2F0 2F1 5F0 5F1 2F2 5I0 5F2 5I1 2I0 5W0 2I1 5I2 5W1 2W0 2I2 2W1 5W2 2W2
    rank 3: 3F0 4F0 3F1 4F1 3F2 4F2 4I0 3I0 4I1 3I1 4W0 3W0 4I2 3I2 4W1 3W1 4W2 3W2

No rank holds more than k = 2 floor((P+2)/2) stage activations, where 1F1B holds 2P. With equal
times, M >= P >= 3, it takes 6 M + 6 P - 1 - 3 k slots; on this placement with this memory, no
schedule takes less.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intandem.schedules.counts import require_counts
from intandem.schedules.v_blocks import v_half_block
from intandem.schedules.v_capped import schedule_of_block

if TYPE_CHECKING:
    from intandem.costs import CostModel
    from intandem.ir import Schedule


def v_half(num_ranks: int, num_microbatches: int, *, costs: CostModel | None = None) -> Schedule:
    """Build the V-Half schedule, two stages per rank.

    Args:
        num_ranks: P, at least 1.
        num_microbatches: M, at least 1.
        costs: of 2P stages. With them, the best schedule found in the same memory; by default,
            V-Half itself.

    Raises:
        ValueError: if either count is less than 1, or ``costs`` are of another number of stages.
    """
    require_counts(num_ranks, num_microbatches)
    return schedule_of_block("v-half", v_half_block(num_ranks), num_microbatches, costs)
