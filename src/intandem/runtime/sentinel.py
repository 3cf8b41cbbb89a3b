"""The thread that beats for one rank and looks at the others.

Each rank looks at the next two and at rank 0 only: of any set of lost ranks, one has a
neighbour that lives. Once an error is seen here it looks at all.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING

from intandem.runtime.alive import Life, kill, life_of, this_process
from intandem.runtime.board import Board
from intandem.runtime.stacks import stack_of
from intandem.runtime.stillness import Glance, Stillness
from intandem.runtime.suspicion import Judge, Observed
from intandem.runtime.trail import Trail, Trails
from intandem.runtime.verdict import Beat, Presence, Verdict, verdict_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import torch.distributed as dist

    from intandem.runtime.suspicion import Limits
    from intandem.runtime.verdict import Origin
    from intandem.runtime.watch import Position

NUM_NEIGHBOURS = 2
LINGER_S = 0.6
"""How long rank 0 stays for the others' goodbye: it may be the one that hosts the store."""

_log = logging.getLogger(__name__)


class Sentinel:
    """Beats for one rank. Attributes are plain: read and written by any thread, without locks.

    Signal handlers use it too, so nothing here may wait for a lock of Python's.

    Attributes:
        position: where the rank is.
        patient_step: the last in which something runs for the first time, or None.
        thread_id: of its thread of work, or None before that.
        num_checks: how often it has looked for a verdict: grows while it waits.
        verdict: who ended the run, or None.
        delivered: the rank's thread of work knows the verdict.
        terminated: the process was told to end.
    """

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        num_ranks: int,
        limits: Limits,
        end: Callable[[str], None],
        attempt: int = 0,
    ) -> None:
        """Say that ``rank`` is there.

        Args:
            store: of the run.
            rank: this one.
            num_ranks: of the run.
            limits: how long signs of loss may last.
            end: ends the process, showing a text.
            attempt: how often the run has been restarted.
        """
        self.position: Position | None = None
        self.patient_step: int | None = None
        self.thread_id: int | None = None
        self.num_checks = 0
        self.verdict: Verdict | None = None
        self.delivered = False
        self.terminated = False
        self._rank, self._num_ranks, self._limits, self._end = rank, num_ranks, limits, end
        self._board = Board(store, attempt)
        self._is_supervised = False
        self._trail = Trail()
        self._trails = Trails()
        self._self = this_process(self._trail.fd)
        self._judge = Judge(limits)
        self._stillness = Stillness(limits.hang_s)
        self._counts = count(time.monotonic_ns())
        self._suspected_s = float("-inf")
        self._stopping = False
        self._beats: dict[int, Beat] = {}
        self._checked: tuple[Position | None, int] = (None, 0)
        self._say(Presence.RUNNING)
        self._thread = threading.Thread(target=self._run, name="intandem-watch", daemon=True)

    @property
    def is_supervised(self) -> bool:
        """Whether a launcher of ours reports every death.

        Asked anew until it is so: the launcher says it once its store is there, and a rank may
        come in between.
        """
        if not self._is_supervised:
            with suppress(RuntimeError):  # a lost store is found out elsewhere
                self._is_supervised = self._board.is_supervised()
        return self._is_supervised

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def stop(self) -> None:
        """Stop beating and say goodbye; waits for the thread. Again: nothing more."""
        if self._stopping:
            return
        self._stopping = True
        if threading.current_thread() is not self._thread:
            self._thread.join(self._limits.verdict_s)
        with suppress(RuntimeError):
            self._say(Presence.LEFT)
            if self._rank == 0 and self.verdict is None:
                self._linger()

    def at(self, position: Position) -> None:
        """The rank is there now."""
        self.thread_id = threading.get_ident()
        self.position = position
        self._trail.write(position)

    def be_patient(self, step: int) -> None:
        """Something runs for the first time in ``step``."""
        self.patient_step = step
        self._trail.be_patient(step)

    def suspect(self, reason: str) -> None:
        """An error was seen here: look at all ranks, and sooner."""
        _log.debug("rank=%d suspects a lost rank: %s", self._rank, reason)
        self._suspected_s = time.monotonic()

    def accuse(self, verdict: Verdict) -> Verdict:
        """Publish ``verdict`` unless there is one, and return the one that counts."""
        with suppress(RuntimeError):  # a lost store must not keep this rank from ending
            verdict = self._board.accuse(verdict)
        return self._decide(verdict)

    def is_stop(self) -> bool:
        """This rank was told to end by a signal: whether all are, so that none is to blame.

        A launcher of ours says so. Of another one it shows in the number of those that were told;
        a rank that has died, and is why the others were told, is waited for.
        """
        with suppress(RuntimeError):
            num_told = self._board.count_told(1)
            wait_s = self._limits.notice_s if self.is_supervised else self._limits.verdict_s
            end_s = time.monotonic() + wait_s
            while self.verdict is None and time.monotonic() < end_s:
                if self._board.stopped_by() or num_told >= max(2, self._num_ranks):
                    return True
                self.num_checks += 1
                time.sleep(0.01)
                num_told = self._board.count_told(0)
            return self.verdict is None and num_told > 1
        return False

    def stopped_by(self) -> str:
        """The signal by which a launcher of ours tells every rank to end, or nothing."""
        with suppress(RuntimeError):
            return self._board.stopped_by()
        return ""

    def _decide(self, verdict: Verdict) -> Verdict:
        if self.verdict is None:
            self.verdict = verdict
        return self.verdict

    def _say(self, presence: Presence, *, waits: bool = False) -> None:
        beat = Beat(
            next(self._counts), presence, self._self, self.position, waits, self.patient_step
        )
        self._board.beat(self._rank, beat)

    def _others(self) -> list[int]:
        return [rank for rank in range(self._num_ranks) if rank != self._rank]

    def _linger(self) -> None:
        end_s = time.monotonic() + LINGER_S
        while time.monotonic() < end_s:
            beats = self._board.look(self._others()).beats
            if all(beat.presence is Presence.LEFT for beat in beats.values()):
                return
            time.sleep(self._limits.beat_s / 10)

    def _run(self) -> None:
        """Beat until the end: body of the thread."""
        last_s = time.monotonic()
        try:
            while not self._stopping and self.verdict is None:
                now_s = time.monotonic()
                self._beat(now_s - last_s)
                last_s = now_s
                self._pause(now_s)
        except RuntimeError as error:
            self._lose_store(error)
        if self.verdict is not None:
            self._see_to_the_end(self.verdict)

    def _pause(self, now_s: float) -> None:
        """Sleep until the next beat; wakes early when something happens here or somebody joins."""
        everybody_joined = self._neighbours() <= self._beats.keys()
        pause_s = self._limits.beat_s / (1 if everybody_joined else 4)
        while time.monotonic() - now_s < pause_s:
            time.sleep(self._limits.beat_s / 8)
            if self._stopping or self.verdict is not None or self._suspected_s > now_s:
                return

    def _beat(self, passed_s: float) -> None:
        suspicious = time.monotonic() - self._suspected_s < self._limits.doubt_s
        peers = self._awaited()
        ranks = set(self._others()) if suspicious or peers else self._neighbours()
        lives = self._lives(ranks)
        sight = self._board.look(sorted({*ranks, self._rank}))
        beats = {rank: beat for rank, beat in sight.beats.items() if rank != self._rank}
        self._beats.update(beats)
        self._trails.follow(beats)
        if sight.verdict is not None:
            self._decide(sight.verdict)
            return
        self._say(Presence.RUNNING, waits=bool(peers))
        now = self._trails.refreshed(beats)
        seen = Observed(passed_s, now, lives, suspicious, self._missing(peers))
        verdict, hang = self._judge.verdict(seen), self._own_hang(passed_s, sight.beats)
        if verdict is not None and not self._stopping:
            self._convict(self._trails.complete(verdict))
        elif hang is not None and not self._stopping:
            self.accuse(hang)

    def _convict(self, verdict: Verdict) -> None:
        """Accuse a rank that does not answer, and end it: nobody else may for a long time."""
        if self.accuse(verdict) == verdict and verdict.rank is not None and not self.is_supervised:
            beat = self._beats[verdict.rank]
            if beat.presence is Presence.RUNNING:
                kill(beat.origin, seen_from=self._self)

    def _own_hang(self, passed_s: float, beats: Mapping[int, Beat]) -> Verdict | None:
        """Say that this rank hangs, and where; unless somebody looks at it in a debugger.

        [Note: several pipelines] A process may have several, each with a watch that beats for the
        same rank. While it is between steps of one, it may be at a step of another.
        """
        own = beats.get(self._rank)
        is_elsewhere = own is not None and _is_of_another(own, self._self)
        is_awaited = any(beat.waits for rank, beat in beats.items() if rank != self._rank)
        seen = Glance(
            self.position, self.num_checks, self.patient_step, is_awaited and not is_elsewhere
        )
        hang = self._stillness.look(seen, min(passed_s, 2 * self._limits.beat_s))
        if hang is None:
            return None
        stack = stack_of(self.thread_id)
        if stack.is_debugged:
            return None
        return Verdict(self._rank, str(hang), self.position, traceback=stack.text)

    def _neighbours(self) -> set[int]:
        near = {(self._rank + 1 + i) % self._num_ranks for i in range(NUM_NEIGHBOURS)}
        return (near | {0}) - {self._rank}

    def _lives(self, ranks: Iterable[int]) -> dict[int, Life]:
        """Of the processes as they were known: one that is gone beats no more after this.

        A launcher of ours sees more of them: it knows exit codes and signals.
        """
        if self.is_supervised:
            return {}
        known = {rank: self._beats[rank].origin for rank in ranks if rank in self._beats}
        return {r: life_of(origin, seen_from=self._self) for r, origin in known.items()}

    def _awaited(self) -> frozenset[int]:
        """Ranks that this rank has been waiting for since the last beat, as far as is known."""
        before, self._checked = self._checked, (self.position, self.num_checks)
        position, num_checks = self._checked
        if position is None or position is not before[0] or num_checks == before[1]:
            return frozenset()
        verb, _, peer = position.doing.partition(":")
        number = peer.rpartition("@")[2]
        if verb == "recv" and number.isdigit():
            return frozenset({int(number)})
        return frozenset(self._others())

    def _missing(self, awaited: frozenset[int]) -> frozenset[int]:
        """Those waited for in vain: one that has left, or all others once they have all left."""
        left = {r for r, beat in self._beats.items() if beat.presence is Presence.LEFT}
        return awaited if awaited <= left else frozenset()

    def _lose_store(self, error: RuntimeError) -> None:
        host = self._beats.get(0)
        goodbye = host is not None and host.presence is Presence.LEFT
        if self._stopping or goodbye:
            _log.debug("rank=%d has no store any more: %s", self._rank, error)
            return
        cause = (
            "the store of the run is lost: its host (the launcher, or rank 0 where there is none) "
            f"has died; this is rank {self._rank}"
        )
        self._decide(Verdict(None, cause, self.position))

    def _see_to_the_end(self, verdict: Verdict) -> None:
        """End a process that does not notice, or that was told to end and goes on."""
        since_s = time.monotonic()
        while not self._stopping:
            time.sleep(self._limits.beat_s / 8)
            if time.monotonic() - since_s < self._grace_s(verdict):
                continue
            if self.terminated or not self.delivered:
                self._end("" if self.delivered else verdict_text(verdict))
                return

    def _grace_s(self, verdict: Verdict) -> float:
        if verdict.is_stop:
            return self._limits.stop_s
        return self._limits.hung_s if verdict.rank == self._rank else self._limits.grace_s


def _is_of_another(beat: Beat, own: Origin) -> bool:
    """Whether a watch other than this one beats for the same rank."""
    return beat.presence is Presence.RUNNING and beat.origin.joined_ns != own.joined_ns
