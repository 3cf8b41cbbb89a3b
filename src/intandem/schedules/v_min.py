"""V-Min: https://arxiv.org/abs/2405.15362, figure 3 (controllable memory).

Two stages per rank in a V, a third of 1F1B's activations: every pass goes on at once, so that a
micro-batch is back as soon as can be, and little is held meanwhile. For P=4, M=3::

    rank 0: 0F0 0F1 7F0 7I0 0F2 7W0 7F1 7I1 7W1 0I0 0W0 7F2 7I2 0I1 7W2 0W1 0I2 0W2
    rank 1: 1F0 1F1 6F0 6F1 6I0 6W0 1F2 6I1 1I0 6W1 1W0 6F2 1I1 6I2 1W1 6W2 1I2 1W2
    rank 2: 2F0 2F1 5F0 5F1 5I0 5W0 2F2 2I0 5I1 2W0 5W1 5F2 2I1 2W1 5I2 5W2 2I2 2W2
    rank 3: 3F0 4F0 3F1 4F1 4I0 3I0 4W0 3F2 3W0 4F2 4I1 3I1 4W1 3W1 4I2 3I2 4W2 3W2

No rank holds more than 2 floor((P+4)/3) stage activations, where 1F1B holds 2P. The less is held,
the emptier are warm-up and cool-down: with equal times, it takes at most 3 slots more than the
6 M + 6 P - 1 - 3 k that any schedule takes that holds k (as many as it does hold), here and in
V-Half.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intandem.schedules.counts import require_counts
from intandem.schedules.v_blocks import v_min_block
from intandem.schedules.v_capped import schedule_of_block

if TYPE_CHECKING:
    from intandem.costs import CostModel
    from intandem.ir import Schedule


def v_min(num_ranks: int, num_microbatches: int, *, costs: CostModel | None = None) -> Schedule:
    """Build the V-Min schedule, two stages per rank.

    Args:
        num_ranks: P, at least 1.
        num_microbatches: M, at least 1.
        costs: of 2P stages. With them, the best schedule found in the same memory; by default,
            V-Min itself.

    Raises:
        ValueError: if either count is less than 1, or ``costs`` are of another number of stages.
    """
    require_counts(num_ranks, num_microbatches)
    return schedule_of_block("v-min", v_min_block(num_ranks), num_microbatches, costs)
