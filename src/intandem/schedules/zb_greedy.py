"""Split backwards by list scheduling, one stage per rank: what rounds of one F and one I miss.

A rank that is free does an I if there is one, else an F if it can hold it, else a W if neither
comes soon; W's come first where they make room. That suits caps below P, where ranks work in
bursts, and stages that differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import product
from typing import TYPE_CHECKING

from intandem.schedules.clock import Clock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from intandem.schedules.setting import Setting


@dataclass(frozen=True, slots=True)
class Leaning:
    """What a rank does where it has a choice.

    Attributes:
        patience: a W is not begun if this share of it would delay an F or I that is known to come.
        most_ahead: F's that a rank may have done more than the next one.
    """

    patience: float
    most_ahead: float


def greedy_clocks(setting: Setting) -> Iterator[Clock]:
    """Yield schedules that keep within the room, one for each way to lean; none if none does."""
    for patience, most_ahead in product((0.0, 0.5, 1.0), (1, 2, 3, math.inf)):
        clock = _Greedy(setting, Leaning(patience, most_ahead)).run()
        if min(clock.num_w) == setting.num_microbatches:
            yield clock


class _Greedy:
    """Ranks are visited when an action of theirs ends, an input arrives, or the next rank goes on.

    Stages are ranks here.
    """

    def __init__(self, setting: Setting, leaning: Leaning) -> None:
        self._clock = Clock(setting)
        self._leaning = leaning
        self._last = setting.placement.num_ranks - 1
        self._activation, self._pending = setting.room.activation, setting.room.pending
        self._growth, self._cap = setting.room.growth, setting.room.cap
        self._visits = [(0.0, rank) for rank in range(self._last + 1)]

    def run(self) -> Clock:
        """Return everything that could be put."""
        clock, visits = self._clock, self._visits
        while visits:
            time_s, rank = heappop(visits)
            if clock.now_s[rank] <= time_s:
                self._visit(rank, time_s)
        return clock

    def _visit(self, rank: int, time_s: float) -> None:
        clock = self._clock
        i_s = clock.i_ready_s(rank)
        f_s = clock.f_ready_s(rank) if self._may_hold_another(rank) else math.inf
        if i_s <= time_s:
            if self._has_room(rank, self._growth[rank], time_s):
                self._plan(rank, max(rank - 1, 0), clock.put_i(rank))
        elif f_s <= time_s:
            if self._has_room(rank, self._activation[rank], time_s):
                self._plan(rank, min(rank + 1, self._last), clock.put_f(rank))
                before = max(rank - 1, 0)
                heappush(self._visits, (max(clock.now_s[before], time_s), before))
        elif clock.pending[rank]:
            delay_s = self._leaning.patience * clock.next_w_s(rank)
            if time_s + delay_s <= min(i_s, f_s):
                self._put_w(rank, time_s)

    def _may_hold_another(self, rank: int) -> bool:
        """Whether an F and its I fit beside the activations whose I has not been done."""
        clock = self._clock
        if rank < self._last:
            num_ahead = clock.num_f[rank] - clock.num_f[rank + 1]
            if num_ahead >= self._leaning.most_ahead:
                return False
        size = max(self._activation[rank], self._pending[rank])
        kept = clock.held[rank] - len(clock.pending[rank]) * self._pending[rank]
        return kept + size <= self._cap[rank]

    def _has_room(self, rank: int, more: float, time_s: float) -> bool:
        """Whether ``more`` fits now; if not, put a W that makes room, if there is one."""
        if self._clock.held[rank] + more <= self._cap[rank]:
            return True
        if self._clock.pending[rank]:
            self._put_w(rank, time_s)
        return False

    def _put_w(self, rank: int, time_s: float) -> None:
        self._clock.put_w(rank, time_s)
        heappush(self._visits, (self._clock.now_s[rank], rank))

    def _plan(self, rank: int, reader: int, arrival_s: float) -> None:
        heappush(self._visits, (self._clock.now_s[rank], rank))
        heappush(self._visits, (arrival_s, reader))
