"""The automatic schedule of the zero-bubble paper: https://arxiv.org/abs/2401.10241, section 3.

One stage per rank, costs of any shape, and a cap on what a rank holds. In rounds of one I per
rank, from the last rank to the first:

1. before the first I, a rank fills its time with F's up to its cap;
2. then every round has an F and an I; a W is put where the rank would wait for at least as long
   as it takes, where memory is needed, and where the rank cannot afford to wait, because it has
   already waited more than the others;
3. a rank stays ahead of the next one by the F's that the next one will need;
4. the W's that are left come last.

Three of these choices can be made either way (``Choices``). All eight ways are tried, and the one
whose longest rank is shortest is taken. Rounds serve caps of P and more and equal stages well;
for others, list scheduling (``zb_greedy``) and what the eight ways do for equal stages compete.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

from intandem.costs import CostModel
from intandem.errors import ScheduleError
from intandem.ir import Placement
from intandem.schedules.clock import Clock
from intandem.schedules.counts import require_counts
from intandem.schedules.replay import refilled, replayed
from intandem.schedules.setting import has_equal_stages, setting_within
from intandem.schedules.zb_greedy import greedy_clocks

if TYPE_CHECKING:
    from intandem.ir import Schedule
    from intandem.schedules.setting import Setting


@dataclass(frozen=True, slots=True)
class Choices:
    """One of the eight ways.

    Attributes:
        never_late: step 1 stops before an F that would delay the first I; else with it.
        backward_first: step 3 leaves out an F when the next rank has enough to do without it.
        always_fill: step 2 puts a W in every wait, even one that the rank can afford.
    """

    never_late: bool
    backward_first: bool
    always_fill: bool


def zb_auto(
    name: str,
    num_ranks: int,
    num_microbatches: int,
    *,
    costs: CostModel | None,
    max_activations: float,
) -> Schedule:
    """Build the automatic schedule, one stage per rank, called ``name``.

    Raises:
        ScheduleError: if none of the ways keeps within the room.
        ValueError: if a count is less than 1, or ``costs`` are of another number of stages.
    """
    require_counts(num_ranks, num_microbatches)
    placement = Placement.loop(num_ranks)
    setting = setting_within(placement, num_microbatches, costs, max_activations)
    clocks = [clock for clock in [best_clock(setting)] if clock is not None]
    if max_activations < num_ranks or not has_equal_stages(setting.costs):
        clocks += greedy_clocks(setting)
        clocks += _for_equal_stages(setting)
    if not clocks:
        msg = f"{name} needs room for more than {max_activations} activations: I leaves more"
        raise ScheduleError(msg)
    return min(clocks, key=Clock.length_s).schedule(name)


def _for_equal_stages(setting: Setting) -> list[Clock]:
    """Return the heuristic's schedule for equal stages without transfers, at the true costs."""
    equal = replace(setting, costs=CostModel.uniform(setting.placement.num_stages))
    if setting.costs == equal.costs or (draft := best_clock(equal)) is None:
        return []
    return [replayed(setting, draft), *(refilled(setting, draft, share) for share in (0.5, 1.0))]


def best_clock(setting: Setting) -> Clock | None:
    """Return the best of the eight ways, or None if none of them keeps within the room."""
    best: Clock | None = None
    for options in product((True, False), repeat=3):
        clock = _Heuristic(setting, Choices(*options)).run()
        if clock is not None and (best is None or clock.length_s() < best.length_s()):
            best = clock
    return best


class _NoRoomError(Exception):
    """The next action does not fit, and no W is left to make room."""


class _Heuristic:
    """One way. Stages are ranks here."""

    def __init__(self, setting: Setting, choices: Choices) -> None:
        self.clock = Clock(setting)
        self._choices = choices
        self._num_ranks = setting.placement.num_ranks
        self._num_microbatches = setting.num_microbatches
        self._costs = setting.costs
        self._activation = setting.room.activation
        self._pending = setting.room.pending
        self._cap = setting.room.cap
        self._growth = setting.room.growth

    def run(self) -> Clock | None:
        """Return everything put, or None if it does not fit."""
        try:
            self._warm_up()
            for _ in range(1, self._num_microbatches):
                self._forwards()
                for rank in reversed(range(self._num_ranks)):
                    self._backward(rank)
        except _NoRoomError:
            return None
        for rank in range(self._num_ranks):
            self.clock.put_w_until(rank, math.inf)
        return self.clock

    def _make_room(self, rank: int, more: float) -> None:
        if not self.clock.make_room(rank, more):
            raise _NoRoomError

    def _warm_up(self) -> None:
        """Step 1, and the first I of every rank."""
        clock = self.clock
        for rank in range(self._num_ranks):
            self._make_room(rank, self._activation[rank])
            clock.put_f(rank)
        counts = self._early_forwards()
        for rank in range(1, self._num_ranks):
            all_early = 1 + counts[rank] == self._num_microbatches
            most = counts[rank - 1] if all_early else counts[rank - 1] - 1
            counts[rank] = max(0, min(counts[rank], most))
        for rank, count in enumerate(counts):
            for _ in range(count):
                clock.put_f(rank)
        for rank in reversed(range(self._num_ranks)):
            self._make_room(rank, self._growth[rank])
            clock.put_i(rank)

    def _early_forwards(self) -> list[int]:
        """Per rank, the F's that it has memory and time for between its first F and first I."""
        last = self._num_ranks - 1
        counts = [0] * self._num_ranks
        ready_s = self.clock.now_s[last] + self._costs.backward_input_s[last]
        for rank in reversed(range(last)):
            ready_s += self.clock.hop_s(rank + 1, rank)
            now_s, held = self.clock.now_s[rank], self.clock.held[rank]
            more, more_s = self._activation[rank], self._costs.forward_s[rank]
            while 1 + counts[rank] < self._num_microbatches and held + more <= self._cap[rank]:
                if now_s + more_s > ready_s if self._choices.never_late else now_s >= ready_s:
                    break
                held += more
                now_s += more_s
                counts[rank] += 1
            ready_s = max(now_s, ready_s) + self._costs.backward_input_s[rank]
        return counts

    def _forwards(self) -> None:
        """One F, or none, on every rank: a rank has one only if every later rank has one."""
        clock = self.clock
        goes = [self._wants_forward(rank) for rank in range(self._num_ranks)]
        first = 1 + max((rank for rank, wants in enumerate(goes) if not wants), default=-1)
        for rank in range(first, self._num_ranks):
            self._make_room(rank, self._activation[rank])
            if rank:
                self._fill(rank, clock.f_ready_s(rank))
            clock.put_f(rank)

    def _wants_forward(self, rank: int) -> bool:
        """Step 3: whether the next rank will run out of F's without one more of this rank."""
        clock, after = self.clock, rank + 1
        if clock.num_f[rank] == self._num_microbatches:
            return False
        if not self._choices.backward_first or after == self._num_ranks:
            return True
        if clock.num_f[rank] < clock.num_f[after] + 2:
            return True
        next_i_s = clock.now_s[after] + clock.hop_s(after, rank)
        next_i_s += self._costs.forward_s[after] + self._costs.backward_input_s[after]
        wait_s = next_i_s - clock.now_s[rank]
        if wait_s <= 0:
            return False
        if clock.now_s[rank] + self._costs.forward_s[rank] + self._room_s(rank) <= next_i_s:
            return True
        return wait_s > clock.max_lag_s - clock.lag_s[rank]

    def _room_s(self, rank: int) -> float:
        """Seconds of the W's that one more F needs put before it."""
        pending = self._pending[rank]
        excess = self.clock.held[rank] + self._activation[rank] - self._cap[rank]
        num_needed = math.ceil(excess / pending) if excess > 0 and pending > 0 else 0
        num_needed = min(num_needed, len(self.clock.pending[rank]))
        return num_needed * self._costs.backward_weight_s[rank]

    def _fill(self, rank: int, ready_s: float) -> None:
        """Step 2: put W's while ``rank`` would wait until ``ready_s``."""
        clock = self.clock
        clock.put_w_until(rank, ready_s)
        wait_s = ready_s - clock.now_s[rank]
        can_wait = wait_s <= clock.max_lag_s - clock.lag_s[rank]
        if clock.pending[rank] and wait_s > 0 and (self._choices.always_fill or not can_wait):
            clock.put_w(rank)

    def _backward(self, rank: int) -> None:
        clock = self.clock
        self._make_room(rank, self._growth[rank])
        if rank + 1 < self._num_ranks:
            self._fill(rank, clock.i_ready_s(rank))
        if rank == 0 and clock.num_f[rank] == self._num_microbatches:
            clock.put_w_until(rank, math.inf)
        clock.put_i(rank)
