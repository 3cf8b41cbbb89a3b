"""Decides from what is seen of one rank that it hangs. Pure.

A rank moves when it comes to another place, and when it looks for a verdict, as everything does
that waits for another rank, many times per second; where its GPU waits, a thread does so for it
(``Watch.tick``). So a rank that stands still is at work, or hangs;
those that wait for it are never taken for it. How long it may stand still:

at an action, or the optimizer      ``hang_s``, or 5 times the longest that was seen
in what runs for the first time     10 times ``hang_s``, or 5 times the longest
in a call such as ``save()``        the same; what is written to may be slow
between steps (the user's code)     the same, and only while another rank waits
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from intandem.runtime.watch import Position

HANG_S = 30.0
"""Seconds that an action may take at least, unless the user says otherwise."""

TIMES_LONGEST = 5
"""How many times as long as the longest that was seen is no hang."""

TIMES_PATIENT = 10
"""How many times as long as an action may last what is no action, or happens for the first time."""


class Glance(NamedTuple):
    """What is seen of a rank.

    Attributes:
        position: where it is; another object for each time that it comes to a place.
        num_checks: how often it has looked for a verdict.
        patient_step: in which something runs for the first time, or None.
        is_awaited: whether another rank waits.
    """

    position: Position | None
    num_checks: int
    patient_step: int | None
    is_awaited: bool


class Hang(NamedTuple):
    """A rank has stood still for too long."""

    still_s: float
    limit_s: float

    def __str__(self) -> str:
        return f"has not moved for {self.still_s:.3g} s (limit {self.limit_s:.3g} s)"


class Stillness:
    """Keeps count of how long one rank has stood still.

    Args:
        hang_s: how long it may at least, at an action; infinity for ever.
    """

    def __init__(self, hang_s: float) -> None:
        self._hang_s = hang_s
        self._position: Position | None = None
        self._num_checks = 0
        self._still_s = 0.0
        self._longest_s = {True: 0.0, False: 0.0}

    def look(self, seen: Glance, passed_s: float) -> Hang | None:
        """Take in a glance, ``passed_s`` seconds after the one before; say if the rank hangs."""
        place = self._position
        if seen.position is not place or seen.num_checks != self._num_checks:
            if place is not None:
                longest_s = self._longest_s[place.is_action]
                self._longest_s[place.is_action] = max(longest_s, self._still_s)
            self._position, self._num_checks = seen.position, seen.num_checks
            self._still_s = 0.0
            return None
        if place is None or (place.is_between_steps and not seen.is_awaited):
            return None
        self._still_s += passed_s
        limit_s = self._limit_s(place, seen.patient_step)
        return Hang(self._still_s, limit_s) if self._still_s > limit_s else None

    def _limit_s(self, place: Position, patient_step: int | None) -> float:
        is_patient = not place.is_action or place.step == patient_step
        least_s = self._hang_s * (TIMES_PATIENT if is_patient else 1)
        return max(least_s, TIMES_LONGEST * self._longest_s[place.is_action])
