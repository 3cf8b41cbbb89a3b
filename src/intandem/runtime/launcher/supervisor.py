"""Watches the processes of a run: the first death is the verdict, and ends the others."""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from intandem.errors import RunError
from intandem.runtime.trail import Trails
from intandem.runtime.verdict import Presence, Verdict, death_cause

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intandem.runtime.board import Board
    from intandem.runtime.launcher.child import Child
    from intandem.runtime.launcher.host import StoreHost
    from intandem.runtime.launcher.output import Output
    from intandem.runtime.verdict import Beat

LOOP_S = 0.03
LOOK_S = 0.2
STOP_S = 30.0
"""Seconds that ranks have for an end of their own, such as a last checkpoint, once told to stop."""
STOPPED_S = 3.0
"""Seconds that a process may be stopped: Ctrl-Z and a debugger's first look are shorter."""


class Supervisor:
    """Reports deaths to the ranks that live, and ends what does not end itself.

    Attributes:
        verdict: who ended the run, or None.
    """

    def __init__(
        self, children: Sequence[Child], host: StoreHost, output: Output, grace_s: float
    ) -> None:
        self.verdict: Verdict | None = None
        self._children = children
        self._host = host
        self._output = output
        self._grace_s = grace_s
        self._kill_at_s = float("inf")
        self._look_at_s = 0.0
        self._stopped_since_s: dict[int, float] = {}
        self._published = False
        self._trails = Trails()
        self._interrupts: list[int] = []
        self._passed_on = False

    @property
    def exit_code(self) -> int:
        """Of the whole run, once all processes have ended."""
        if self.verdict is None:
            was_killed = any(child.killed_here for child in self._children)
            return 128 + self._interrupts[0] if self._interrupts and was_killed else 0
        if self.verdict.rank is None:
            return 128 + self._interrupts[0] if self._interrupts else 1
        culprit = self._children[self.verdict.rank]
        if culprit.killed_here or not culprit.status:
            return 1
        return culprit.status if culprit.status > 0 else 128 - culprit.status

    def run(self) -> None:
        """Return once every process has ended.

        Raises:
            RunError: if the store cannot be opened.
        """
        while any(child.is_alive for child in self._children):
            self._output.forward(LOOP_S)
            self._pass_on_interrupts()
            if self._host.error is not None:
                msg = f"cannot open the store of the run: {self._host.error}"
                raise RunError(msg) from self._host.error
            self._reap()
            self._look()
            if time.monotonic() > self._kill_at_s or self._only_stopped():
                self.kill()

    def interrupt(self, signum: int) -> None:
        """Note that this process was told to end. Safe in a signal handler."""
        self._interrupts.append(signum)

    def kill(self) -> None:
        """End every process, and what the processes of a failed run have started."""
        if self.verdict is None and not any(child.is_alive for child in self._children):
            return
        for child in self._children:
            child.poll()
            child.kill()
        for child in self._children:
            child.wait()

    def _only_stopped(self) -> bool:
        """Whether none of those who live can end by itself."""
        alive = [child for child in self._children if child.is_alive]
        return self.verdict is not None and all(child.stopped for child in alive)

    def _pass_on_interrupts(self) -> None:
        if not self._interrupts:
            return
        signum = self._interrupts[0]
        if len(self._interrupts) > 1:
            self.kill()
        elif not self._passed_on:
            self._passed_on = True
            if self._host.board is not None:  # else nobody has joined
                with suppress(RuntimeError):
                    self._host.board.stop(signal.Signals(signum).name)
            self._kill_at_s = min(self._kill_at_s, time.monotonic() + STOP_S)
            for child in self._children:
                child.signal(signal.SIGTERM if signum == signal.SIGHUP else signum)

    def _reap(self) -> None:
        """Find processes that have ended, and convict the first that should not have."""
        alive = [child for child in self._children if child.is_alive]
        for child in alive:
            child.poll()
        ended = [child for child in alive if not child.is_alive]
        # Of several at once, one that was killed is the cause and the others are its victims.
        for child in sorted(ended, key=lambda child: (child.status or 0) >= 0):
            self._judge_death(child)
        self._judge_stopped()

    def _judge_death(self, child: Child) -> None:
        status = child.status or 0
        beat = self._beat_of(child.rank)
        position = None if beat is None else beat.position
        if status == 0 and (beat is None or beat.presence is Presence.LEFT):
            return
        verdict = Verdict(child.rank, death_cause(status), position, last_seen=True)
        self._convict(verdict)

    def _judge_stopped(self) -> None:
        now_s = time.monotonic()
        for child in self._children:
            if not (child.is_alive and child.stopped):
                self._stopped_since_s.pop(child.rank, None)
            elif now_s - self._stopped_since_s.setdefault(child.rank, now_s) > STOPPED_S:
                beat = self._beat_of(child.rank)
                cause = f"was stopped (SIGSTOP) for {STOPPED_S:.0f} s"
                position = None if beat is None else beat.position
                self._convict(Verdict(child.rank, cause, position, last_seen=True))

    def _look(self) -> None:
        """Learn of a verdict that a rank has published; publish one that waited for the store."""
        now_s = time.monotonic()
        everybody_joined = len(self._trails) == len(self._children)
        if self._host.board is None or (everybody_joined and now_s < self._look_at_s):
            return
        self._look_at_s = now_s + LOOK_S
        if self.verdict is None:
            sight = self._host.board.look(range(len(self._children)))
            self._trails.follow(sight.beats)
            if sight.verdict is not None:
                self._convict(sight.verdict)
        elif not self._published:
            self._publish(self._host.board, self.verdict)

    def _convict(self, verdict: Verdict) -> None:
        """Let ``verdict`` count, unless there is one; the clock of the grace time starts.

        What ends after the run was told to stop ends of that, unless a rank says otherwise; others
        may still be at their own end.
        """
        if self.verdict is not None:
            return
        if self._passed_on and not verdict.traceback:
            verdict = Verdict.stopped(signal.Signals(self._interrupts[0]).name)
        self.verdict = verdict = self._trails.complete(verdict)
        if self._host.board is not None:
            self._publish(self._host.board, verdict)
        grace_s = STOP_S if verdict.is_stop else self._grace_s
        self._kill_at_s = min(self._kill_at_s, time.monotonic() + grace_s)
        if verdict.is_stop:
            return
        for child in self._children:
            if child.is_alive and self._beat_of(child.rank) is None:
                child.signal(signal.SIGTERM)  # it has no watch that would tell it

    def _publish(self, board: Board, verdict: Verdict) -> None:
        with suppress(RuntimeError):
            self.verdict = board.accuse(verdict)
            self._published = True

    def _beat_of(self, rank: int) -> Beat | None:
        if self._host.board is None:
            return None
        return self._host.board.look((rank,)).beats.get(rank)
