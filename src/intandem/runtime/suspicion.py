"""Decides from what one rank sees of the others that one of them is lost. Pure.

A rank is lost when its process is gone although it never said that it leaves, when it has been
stopped or silent for too long, or when it has left and somebody waits for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from intandem.runtime.alive import Life
from intandem.runtime.stillness import HANG_S
from intandem.runtime.verdict import Beat, Presence, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a sign may last before it counts. All in seconds.

    Attributes:
        beat_s: between two beats.
        suspect_s: without a beat, where an error was seen here too.
        stopped_s: stopped process.
        silent_s: without a beat and without any other sign, at an action.
        absent_s: the same elsewhere: the user's own code may hold Python's lock to read a file, as
            may what runs for the first time.
        left_s: waiting for a rank that has left.
        doubt_s: for how long an error seen here counts.
        verdict_s: an error seen here waits for another rank's name.
        grace_s: from a verdict to the forced end of a process that does not end by itself.
        hung_s: the same for the one that hangs: it will not notice; others are to hear of it first.
        stop_s: the same where the run was told to stop: a last checkpoint takes a while.
        notice_s: being told to end waits for a launcher of ours to say that all are.
        hang_s: that an action may take at least; see ``stillness``.
    """

    beat_s: float = 0.2
    suspect_s: float = 1.5
    stopped_s: float = 3.0
    silent_s: float = 4.0
    absent_s: float = 10.0
    left_s: float = 2.0
    doubt_s: float = 5.0
    verdict_s: float = 2.5
    grace_s: float = 2.0
    hung_s: float = 1.0
    stop_s: float = 30.0
    notice_s: float = 0.5
    hang_s: float = HANG_S


@dataclass(frozen=True, slots=True)
class Observed:
    """What one beat of this rank sees.

    Attributes:
        passed_s: since the beat before.
        beats: of the ranks looked at.
        lives: of their processes, seen before the beats were read.
        suspicious: an error that may come from a lost rank was seen here lately.
        waits_for: the ranks that this rank waits for; empty if it works.
    """

    passed_s: float
    beats: Mapping[int, Beat]
    lives: Mapping[int, Life]
    suspicious: bool = False
    waits_for: frozenset[int] = frozenset()


class Judge:
    """Keeps count of how long each rank has been silent or stopped."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._counts: dict[int, int] = {}
        self._silent_s: dict[int, float] = {}
        self._stopped_s: dict[int, float] = {}
        self._doubt_s = 0.0
        self._wait_s = 0.0

    def verdict(self, seen: Observed) -> Verdict | None:
        """Take in one beat's view and name the rank that is lost, if one is."""
        # A process that did not run itself for a while has seen nothing in that time.
        passed_s = min(seen.passed_s, 2 * self._limits.beat_s)
        self._doubt_s = self._doubt_s + passed_s if seen.suspicious else 0.0
        self._wait_s = self._wait_s + passed_s if seen.waits_for else 0.0
        running = {r: b for r, b in seen.beats.items() if b.presence is Presence.RUNNING}
        for rank, beat in running.items():
            cause = self._loss(rank, beat, seen, passed_s)
            if cause:
                return Verdict(rank, cause, beat.position, last_seen=True)
        return self._missed(seen)

    def _loss(self, rank: int, beat: Beat, seen: Observed, passed_s: float) -> str:
        """Why ``rank`` is lost, or nothing."""
        life = seen.lives.get(rank, Life.UNKNOWN)
        silent_s = self._silent_for(rank, beat, life, passed_s)
        stopped_s = self._stopped_for(rank, life, passed_s)
        if life is Life.DEAD:
            return "died (its process is gone)"
        if stopped_s > self._limits.stopped_s:
            return f"was stopped (SIGSTOP) for {stopped_s:.0f} s"
        if silent_s > self._silence_s(beat):
            return f"did not answer for {silent_s:.0f} s (stuck or cut off)"
        if life is Life.UNKNOWN and self._doubt_s and silent_s > self._limits.suspect_s:
            return f"did not answer for {silent_s:.1f} s (dead, stopped or cut off)"
        return ""

    def _silence_s(self, beat: Beat) -> float:
        place = beat.position
        is_usual = place is not None and place.is_action and place.step != beat.patient_step
        return self._limits.silent_s if is_usual else self._limits.absent_s

    def _silent_for(self, rank: int, beat: Beat, life: Life, passed_s: float) -> float:
        advanced = self._counts.get(rank) != beat.count
        self._counts[rank] = beat.count
        counts = not advanced and life is not Life.HELD
        self._silent_s[rank] = self._silent_s[rank] + passed_s if counts else 0.0
        return self._silent_s[rank]

    def _stopped_for(self, rank: int, life: Life, passed_s: float) -> float:
        if life is not Life.STOPPED:
            self._stopped_s.pop(rank, None)
            return 0.0
        self._stopped_s[rank] = self._stopped_s.get(rank, -passed_s) + passed_s
        return self._stopped_s[rank]

    def _missed(self, seen: Observed) -> Verdict | None:
        """Name a rank that has left while it was needed."""
        left = {r: b for r, b in seen.beats.items() if b.presence is Presence.LEFT}
        missed = left.keys() & seen.waits_for
        if missed and self._wait_s > self._limits.left_s:
            return _left(min(missed), left)
        # An error here and nobody dead: the earliest leaver cut the connection.
        if left and self._doubt_s > self._limits.suspect_s + 2 * self._limits.beat_s:
            return _left(min(left, key=lambda rank: (_step(left[rank]), rank)), left)
        return None


def _left(rank: int, left: Mapping[int, Beat]) -> Verdict:
    cause = "left the run early while others waited for it"
    return Verdict(rank, cause, left[rank].position, last_seen=True)


def _step(beat: Beat) -> int:
    return -1 if beat.position is None else beat.position.step
