"""ZB-V: https://arxiv.org/abs/2401.10241, figure 5 (section 6).

Two stages per rank in a V: the last stage is on rank 0, where the first is, and the loss is where
the batch is. The heuristic of ``v_rounds`` for given costs, with room for 2P stage activations on
every rank, which is what 1F1B holds: with equal times and M >= 2P, no bubble per rank.
For P=3, M=3::

    rank 0: 0F0 0F1 0F2 5F0 5I0 5F1 5I1 5F2 5I2 0I0 5W0 0I1 5W1 0I2 5W2 0W0 0W1 0W2
    rank 1: 1F0 1F1 1F2 4F0 4F1 4I0 4F2 4I1 1I0 4I2 1I1 4W0 1I2 4W1 1W0 4W2 1W1 1W2
    rank 2: 2F0 3F0 2F1 3F1 2F2 3F2 3I0 2I0 3I1 2I1 3I2 2I2 3W0 2W0 3W1 2W1 3W2 2W2

Under a flush, rank P-1 still starts P-1 forwards late. With less room, or stages that cost
different times, building blocks of controllable memory are followed, too (``v_capped``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intandem.errors import ScheduleError
from intandem.ir import Placement, Schedule
from intandem.schedules.clock import Clock
from intandem.schedules.counts import require_counts
from intandem.schedules.setting import has_equal_stages, setting_within
from intandem.schedules.v_capped import best_v_clock
from intandem.schedules.v_rounds import best_clock

if TYPE_CHECKING:
    from intandem.costs import CostModel


def zb_v(
    num_ranks: int,
    num_microbatches: int,
    *,
    costs: CostModel | None = None,
    max_activations: float | None = None,
) -> Schedule:
    """Build the ZB-V schedule, two stages per rank.

    Args:
        num_ranks: P, at least 1.
        num_microbatches: M, at least 1.
        costs: of 2P stages; by default, every action takes one second and no transfer any. With
            bytes of activations, memory counts in bytes: what I frees is free.
        max_activations: what every rank may hold, 2P by default, in activations of the mean size
            of its stages.

    Raises:
        ScheduleError: if a rank cannot hold an activation of each of its stages.
        ValueError: if a count is less than 1, or ``costs`` are of another number of stages.
    """
    require_counts(num_ranks, num_microbatches)
    most = 2 * num_ranks if max_activations is None else max_activations
    if 1 <= most < 2:
        got = f"zb-v within {most:g} stage activation(s) per rank"
        msg = f"{got}; a rank holds an activation of each of its two stages, so use 2 or more"
        raise ScheduleError(msg)
    setting = setting_within(Placement.vee(num_ranks), num_microbatches, costs, most)
    clocks = [clock for clock in [best_clock(setting)] if clock is not None]
    if not clocks or most < 2 * num_ranks or not has_equal_stages(setting.costs):
        clocks.append(best_v_clock(setting))
    return min(clocks, key=Clock.length_s).schedule("zb-v")
