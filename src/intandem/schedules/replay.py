"""Orders that were made for other costs, put on a clock with the true ones."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from intandem.ir import ActionKind
from intandem.schedules.clock import Clock

if TYPE_CHECKING:
    from collections.abc import Callable

    from intandem.schedules.setting import Setting


def replayed(setting: Setting, draft: Clock) -> Clock:
    """Return every action of ``draft`` in its order, at the times of ``setting``."""
    clock = Clock(setting)

    def put(rank: int, stage: int, kind: ActionKind) -> None:
        if kind is ActionKind.W:
            clock.put_w(rank)
        else:
            (clock.put_f if kind is ActionKind.F else clock.put_i)(stage)

    _put_all(clock, draft, put)
    return clock


def refilled(setting: Setting, draft: Clock, patience: float) -> Clock:
    """Return the F's and I's of ``draft`` in its order, with W's where ranks wait or need memory.

    Args:
        setting: its room is that of ``draft``.
        draft: an order that keeps within it.
        patience: a W is not begun if this share of it would delay what comes next.
    """
    clock, activation, growth = Clock(setting), setting.room.activation, setting.room.growth

    def put(rank: int, stage: int, kind: ActionKind) -> None:
        if kind is ActionKind.W:
            return
        is_f = kind is ActionKind.F
        clock.make_room(rank, activation[stage] if is_f else growth[stage])
        ready_s = clock.f_ready_s(stage) if is_f else clock.i_ready_s(stage)
        while clock.pending[rank] and ready_s > clock.now_s[rank]:
            if clock.now_s[rank] + patience * clock.next_w_s(rank) > ready_s:
                break
            clock.put_w(rank)
        (clock.put_f if is_f else clock.put_i)(stage)

    _put_all(clock, draft, put)
    for rank in range(len(clock.now_s)):
        clock.put_w_until(rank, math.inf)
    return clock


def _put_all(clock: Clock, draft: Clock, put: Callable[[int, int, ActionKind], None]) -> None:
    """Call ``put`` for every action of ``draft``, after those that it needs."""
    next_slot = [0] * len(draft.rows)
    moved = True
    while moved:
        moved = False
        for rank, row in enumerate(draft.rows):
            slot = first = next_slot[rank]
            while slot < len(row) and _is_ready(clock, row[slot][0], row[slot][1]):
                put(rank, row[slot][0], row[slot][1])
                slot += 1
            next_slot[rank] = slot
            moved = moved or slot > first


def _is_ready(clock: Clock, stage: int, kind: ActionKind) -> bool:
    if kind is ActionKind.W:
        return True
    ready_s = clock.f_ready_s(stage) if kind is ActionKind.F else clock.i_ready_s(stage)
    return ready_s < math.inf
