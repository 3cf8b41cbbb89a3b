"""The heuristic of ZB-V: https://arxiv.org/abs/2401.10241, section 6.

Two stages per rank in a V: rank r has stage r on the way down and stage 2P-1-r on the way up. The
cap is at least that of 1F1B, 2P stage activations. In rounds of one I and one F per rank:

1. micro-batch 0 goes down and up; ranks fill the time until it is back with F's of later ones,
   with room kept for what every rank will need to hand on;
2. an I goes down if the rank has as many of both, or the one that it could do of its upper
   stage is not there yet; likewise an F goes up if it can;
3. a W is put where the rank would wait for at least as long as it takes, where memory is needed,
   and where the rank cannot afford to wait, because it has already waited more than the others;
4. the W's that are left come last.

What a rank can afford is known better once a schedule is there, so that it is built again with
the waits of the one before for as long as it becomes shorter.
"""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING

from intandem.schedules.clock import Clock

if TYPE_CHECKING:
    from intandem.schedules.setting import Setting


def best_clock(setting: Setting) -> Clock | None:
    """Return the best of four ways, or None if none of them keeps within the room.

    They differ in whether a wait before an F, and one before an I of the upper stage, is filled
    with a W that takes longer than the wait.
    """
    found = (_improved(setting, fill_f, fill_i) for fill_i, fill_f in product((1, 0), repeat=2))
    clocks = [clock for clock in found if clock is not None]
    return min(clocks, key=Clock.length_s, default=None)


def _improved(setting: Setting, fill_f: int, fill_i: int) -> Clock | None:
    best: Clock | None = None
    spare_s = [0.0] * setting.placement.num_ranks
    while True:
        clock = _Rounds(setting, (fill_f, fill_i), spare_s).run()
        if clock is None or (best is not None and clock.max_lag_s >= best.max_lag_s):
            return best
        best = clock
        spare_s = [clock.max_lag_s - lag_s for lag_s in clock.lag_s]


class _StuckError(Exception):
    """What was to come next needs memory, or an action, that is not there."""


class _Rounds:
    """One way: ``down[rank]`` and ``up[rank]`` are the stages of a rank."""

    def __init__(self, setting: Setting, fills: tuple[int, int], spare_s: list[float]) -> None:
        self.clock = Clock(setting)
        self._num_microbatches = setting.num_microbatches
        self._setting = setting
        self._growth = setting.room.growth
        self._fill_f, self._fill_i = fills
        self._spare_s = spare_s
        self._first_lag_s = list(self.clock.lag_s)
        self._num_ranks = setting.placement.num_ranks
        self._down = list(range(self._num_ranks))
        self._up = [2 * self._num_ranks - 1 - rank for rank in self._down]

    def run(self) -> Clock | None:
        """Return everything put, or None if it does not fit."""
        try:
            self._down_and_up()
            self._level()
            for _ in range(2 * self._num_microbatches):
                self._backwards()
                for rank in self._down:
                    self._forward(rank)
        except _StuckError:
            return None
        for rank in self._down:
            self.clock.put_w_until(rank, math.inf)
        return self.clock

    def _put_f(self, stage: int) -> None:
        rank = self._setting.placement.rank_of[stage]
        more = self._setting.room.activation[stage]
        if self.clock.f_ready_s(stage) == math.inf or not self.clock.make_room(rank, more):
            raise _StuckError
        self.clock.put_f(stage)

    def _down_and_up(self) -> None:
        """Step 1: micro-batch 0 down and up, later ones down while it is away."""
        clock, costs, room = self.clock, self._setting.costs, self._setting.room
        for stage in self._down:
            self._put_f(stage)
        for rank in reversed(self._down):
            down, up = self._down[rank], self._up[rank]
            back_s = clock.f_ready_s(up)
            needs = (rank + 1) * (room.activation[down] + room.activation[up])
            while (
                clock.held[rank] + needs <= room.cap[rank]
                and clock.now_s[rank] + costs.forward_s[down] <= back_s
                and clock.num_f[down] < self._num_microbatches
            ):
                for stage in self._down[: rank + 1]:
                    self._put_f(stage)
            self._put_f(up)

    def _level(self) -> None:
        """Give every rank as many F's as the one before, taken down and up in turn."""
        num_f, num_microbatches = self.clock.num_f, self._num_microbatches
        way, other = self._down, self._up
        for rank in self._down[1:]:
            before = rank - 1
            while self._num_forwards(rank) < self._num_forwards(before) or (
                num_f[self._up[rank]] <= num_f[self._up[before]] < num_microbatches
            ):
                for later in reversed(self._down[rank:]):
                    if num_f[way[later]] < num_microbatches:
                        self._put_f(way[later])
                way, other = other, way

    def _num_forwards(self, rank: int) -> int:
        return self.clock.num_f[self._down[rank]] + self.clock.num_f[self._up[rank]]

    def _backwards(self) -> None:
        """Step 2 for I: those of the lower stages travel up the ranks, the others down."""
        homewards = [self._backward_is_home(rank) for rank in self._down]
        for rank in reversed(self._down):
            if homewards[rank]:
                self._put_i(self._down[rank], rank, fills=1)
        for rank in self._down:
            if not homewards[rank]:
                self._put_i(self._up[rank], rank, fills=self._fill_i)

    def _backward_is_home(self, rank: int) -> bool:
        """Whether the next I of ``rank`` is of its stage on the way down."""
        num_i, down, up = self.clock.num_i, self._down[rank], self._up[rank]
        if num_i[down] >= num_i[up]:
            return False
        return num_i[up] == self._num_microbatches or self.clock.i_ready_s(down) < math.inf

    def _put_i(self, stage: int, rank: int, fills: int) -> None:
        more, ready_s = self._growth[stage], self.clock.i_ready_s(stage)
        if ready_s == math.inf or not self.clock.make_room(rank, more):
            raise _StuckError
        self._fill(rank, ready_s, fills)
        self.clock.put_i(stage)

    def _forward(self, rank: int) -> None:
        """Step 2 for F, if this rank has one to do."""
        num_f, down, up = self.clock.num_f, self._down[rank], self._up[rank]
        if num_f[up] == self._num_microbatches:
            return
        stage = up if num_f[up] < num_f[down] else down
        if stage == up and self.clock.f_ready_s(up) == math.inf:
            stage = down
        ready_s = self.clock.f_ready_s(stage)
        if ready_s == math.inf:
            return
        if not self.clock.make_room(rank, self._setting.room.activation[stage]):
            raise _StuckError
        self._fill(rank, ready_s, self._fill_f)
        self.clock.put_f(stage)

    def _fill(self, rank: int, ready_s: float, fills: int) -> None:
        """Step 3: put W's while ``rank`` would wait until ``ready_s``."""
        clock = self.clock
        clock.put_w_until(rank, ready_s)
        idle_s = clock.lag_s[rank] - self._first_lag_s[rank]
        afford_s = max(clock.max_lag_s - clock.lag_s[rank], self._spare_s[rank] - idle_s)
        if fills and clock.pending[rank] and ready_s - clock.now_s[rank] > afford_s:
            clock.put_w(rank)
