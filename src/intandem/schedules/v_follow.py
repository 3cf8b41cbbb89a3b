"""V schedules that follow a building block: list scheduling by true costs under a cap.

Micro-batches do what the block says one interval after another, but in time: a rank that is free
takes the first pass, in the order of the block, whose input is there. A pass that is not the
first must leave room for those before it, and an F must not be more than ``reach`` slots ahead of
them, so that the block's spacing is kept where it matters. W's fill the waits.

[Note: no deadlock] In the order of the block, a rank never holds more than its cap, with every W
right after its I. Whatever it takes out of order, that stays so for the rest. The block's order
does not deadlock; so neither does this.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from intandem.schedules.clock import Clock

if TYPE_CHECKING:
    from intandem.schedules.setting import Setting
    from intandem.schedules.v_blocks import Block


@dataclass(frozen=True, slots=True)
class Manner:
    """What a rank does where the block does not say.

    Attributes:
        reach: slots that an F may be ahead of the first pass that is not done.
        lookahead: a pass out of order is not begun if this share of it would delay one before it
            that is known to come.
        patience: a W is not begun if this share of it would delay a pass that is known to come.
    """

    reach: float = 4.0
    lookahead: float = 0.0
    patience: float = 1.0


_Pass = tuple[int, bool, int, float]
"""The next F or I of a stage: its slot in the block's order, is it an F, stage, when it can start.

A plain tuple, because they are made for every visit."""


def followed(setting: Setting, block: Block, manner: Manner) -> Clock:
    """Return ``block`` for all micro-batches. It must fit the room of ``setting``."""
    run = _Follower(setting, block, manner)
    run.run()
    return run.clock


class _Follower:
    """Ranks are visited when an action of theirs ends or an input arrives."""

    def __init__(self, setting: Setting, block: Block, manner: Manner) -> None:
        self.clock = Clock(setting)
        self._rank_of, self._num_stages = setting.placement.rank_of, setting.placement.num_stages
        self._num_microbatches = setting.num_microbatches
        self._room = setting.room
        self._f_s, self._i_s = setting.costs.forward_s, setting.costs.backward_input_s
        self._growth = setting.room.growth
        self._interval, self._manner = block.interval, manner
        rows = block.passes
        self._f_slot = [row.f_down for row in rows] + [row.f_up for row in reversed(rows)]
        self._i_slot = [row.i_down for row in rows] + [row.i_up for row in reversed(rows)]
        self._visits = [(0.0, rank) for rank in range(len(rows))]

    def run(self) -> None:
        """Put everything."""
        clock, visits = self.clock, self._visits
        while visits:
            time_s, rank = heappop(visits)
            if clock.now_s[rank] <= time_s:
                self._visit(rank, time_s)
        for rank in range(len(clock.now_s)):
            clock.put_w_until(rank, math.inf)

    def _visit(self, rank: int, time_s: float) -> None:
        waiting = self._next_passes(rank)
        soon_s = math.inf
        for place, step in enumerate(waiting):
            ready_s = step[3]
            if ready_s > time_s:
                soon_s = min(soon_s, ready_s)
            elif not place or self._may_overtake(rank, step, waiting[:place], soon_s - time_s):
                self._start(rank, step, time_s)
                return
        clock = self.clock
        if clock.pending[rank]:
            delay_s = clock.next_w_s(rank) * self._manner.patience
            if time_s + delay_s <= soon_s:
                self._start_w(rank, time_s)

    def _next_passes(self, rank: int) -> list[_Pass]:
        """Return the next F and I of both stages of ``rank``, in the order of the block."""
        clock, interval, most = self.clock, self._interval, self._num_microbatches
        num_f, num_i = clock.num_f, clock.num_i
        found = []
        for stage in (rank, self._num_stages - 1 - rank):
            num = num_f[stage]
            if num < most:
                ready_s = clock.f_ready_s(stage)
                found.append((self._f_slot[stage] + interval * num, True, stage, ready_s))
            num = num_i[stage]
            if num < most:
                ready_s = clock.i_ready_s(stage)
                found.append((self._i_slot[stage] + interval * num, False, stage, ready_s))
        found.sort()
        return found

    def _may_overtake(self, rank: int, step: _Pass, before: list[_Pass], gap_s: float) -> bool:
        """Whether ``step`` may be done ahead of those ``before`` it, none of which is ready."""
        slot, is_f, stage, _ = step
        manner = self._manner
        seconds = (self._f_s if is_f else self._i_s)[stage]
        if manner.lookahead and seconds * manner.lookahead > gap_s:
            return False
        if is_f and slot - before[0][0] > manner.reach:
            return False
        return (not is_f and self._growth[stage] <= 0) or self._leaves_room(rank, step, before)

    def _leaves_room(self, rank: int, step: _Pass, before: list[_Pass]) -> bool:
        """See [Note: no deadlock]."""
        clock, room = self.clock, self._room
        cap = room.cap[rank]
        held = clock.held[rank] - sum(room.pending[stage] for stage in clock.pending[rank])
        order = sorted(
            (slot, is_f, stage)
            for first, is_f, stage, _ in before
            for slot in range(first, step[0], self._interval)
        )
        for _, is_f, stage in [step[:3], *order]:
            if is_f:
                held += room.activation[stage]
                if held > cap:
                    return False
            else:
                if held + self._growth[stage] > cap:
                    return False
                held -= room.activation[stage]
        return True

    def _start(self, rank: int, step: _Pass, time_s: float) -> None:
        clock = self.clock
        _, is_f, stage, _ = step
        more = self._room.activation[stage] if is_f else self._growth[stage]
        if clock.held[rank] + more > self._room.cap[rank]:
            self._start_w(rank, time_s)
            return
        if is_f:
            arrival_s = clock.put_f(stage)
            reader = min(stage + 1, self._num_stages - 1)
        else:
            arrival_s = clock.put_i(stage)
            reader = max(stage - 1, 0)
        heappush(self._visits, (clock.now_s[rank], rank))
        heappush(self._visits, (arrival_s, self._rank_of[reader]))

    def _start_w(self, rank: int, time_s: float) -> None:
        self.clock.put_w(rank, time_s)
        heappush(self._visits, (self.clock.now_s[rank], rank))
