"""Watch of ranks that are processes, over the store they met in."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from intandem.errors import PeerFailureError, RunError
from intandem.runtime.process_hooks import ProcessHooks
from intandem.runtime.sentinel import Sentinel
from intandem.runtime.suspicion import Limits
from intandem.runtime.verdict import Verdict, is_consequence, verdict_text
from intandem.runtime.watch import after

if TYPE_CHECKING:
    import torch.distributed as dist

    from intandem.runtime.process_hooks import Hooks
    from intandem.runtime.watch import Position

_LOST_CONNECTION = ("closed by peer", "reset by peer", "Broken pipe", "ncclRemoteError")


class DistributedWatch:
    """One process's part in the health of a run; see ``Watch``.

    Making one starts a daemon thread that speaks to the store, and through ``hooks`` sees to it
    that the process tells the others when it ends, and itself ends once the run has failed.
    """

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        num_ranks: int,
        *,
        attempt: int = 0,
        limits: Limits | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        """Join the run that meets in ``store``.

        Args:
            store: of the default process group. Keys are below ``intandem/`` of its root.
            rank: global rank of this process; instructions must name peers by the same numbers.
            num_ranks: all processes of the run.
            attempt: how often the run has been restarted.
            limits: how long signs of loss may last.
            hooks: what happens at the end of the process; of use to tests.
        """
        self._limits = limits or Limits()
        self._hooks = hooks or ProcessHooks()
        self._rank = rank
        self._sentinel = Sentinel(store, rank, num_ranks, self._limits, self._hooks.end, attempt)
        self._sentinel.start()
        self._hooks.install(self)

    @property
    def verdict(self) -> Verdict | None:
        """Who ended the run, or None while it is healthy."""
        return self._sentinel.verdict

    @property
    def delivered(self) -> bool:
        """Whether this rank's thread of work has been told that the run has failed."""
        return self._sentinel.delivered

    def at(self, position: Position) -> None:
        """Say where this rank is now."""
        self._sentinel.at(position)

    def be_patient(self, step: int) -> None:
        """Say that something runs for the first time in ``step``; see ``Watch.be_patient``."""
        self._sentinel.be_patient(step)

    def begin(self, what: str) -> None:
        """Say that this rank is at something between passes; see ``Watch.begin``."""
        self.at(after(self._sentinel.position, what))

    def check(self) -> None:
        """Return while the run is healthy; see ``Watch.check``.

        Raises:
            PeerFailureError: once another rank has failed; names rank, position and cause.
            RunError: once this rank has failed and goes on all the same.
        """
        self._sentinel.num_checks += 1
        if self._sentinel.verdict is not None:
            self._sentinel.delivered = True
            raise _error_of(self._sentinel.verdict, self._rank)

    def tick(self) -> None:
        """Say that this rank waits for another; see ``Watch.tick``."""
        self._sentinel.num_checks += 1

    def fail(self, error: BaseException) -> None:
        """Say that this rank cannot go on; the first failure of a run wins.

        An error that passes on another rank's failure, or a lost connection, is the sign of
        another rank's death: its name is waited for, for a few seconds.
        """
        if self.verdict is not None:
            return
        if is_consequence(error) or _is_lost_connection(error):
            self.suspect(str(error))
            if self.wait_for_verdict(self._limits.verdict_s) is not None:
                return
            if name := self._sentinel.stopped_by():
                self._sentinel.accuse(Verdict.stopped(name))
                return
        self._sentinel.delivered = True
        if isinstance(error, KeyboardInterrupt) and self._sentinel.is_stop():
            self._sentinel.accuse(Verdict.stopped("SIGINT"))
            return
        self._sentinel.accuse(Verdict.of_error(self._rank, self._sentinel.position, error))

    def suspect(self, reason: str) -> None:
        """Say that an error was seen here that another rank's death may have caused.

        Returns at once. If a rank is dead, ``check`` raises within two seconds or so.
        """
        self._sentinel.suspect(reason)

    def wait_for_verdict(self, timeout_s: float) -> Verdict | None:
        """Wait for a verdict, at most ``timeout_s`` seconds. Takes no lock."""
        end_s = time.monotonic() + timeout_s
        while self.verdict is None and time.monotonic() < end_s:
            self._sentinel.num_checks += 1
            time.sleep(0.01)
        return self.verdict

    def terminate(self) -> Verdict:
        """Say that this process was told to end (SIGTERM), and return who ended the run.

        A launcher tells all others to end once one has died: that one is waited for. If all are
        told, nobody is to blame.
        """
        self.suspect("SIGTERM")
        told = Verdict(self._rank, "was told to end by SIGTERM", self._sentinel.position)
        if self._sentinel.is_stop():
            told = Verdict.stopped(self._sentinel.stopped_by() or "SIGTERM")
        verdict = self._sentinel.accuse(told) if self.verdict is None else self.verdict
        self._sentinel.terminated = verdict.rank != self._rank
        return verdict

    def close(self) -> None:
        """This rank leaves the run in good order. What a failed run still needs stays."""
        self._sentinel.stop()
        if self.verdict is None:
            self._hooks.undo()


def _error_of(verdict: Verdict, rank: int) -> RunError:
    if verdict.rank == rank:
        return RunError(f"the run is over: {verdict_text(verdict)}")
    return PeerFailureError(verdict_text(verdict))


def _is_lost_connection(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and any(s in str(error) for s in _LOST_CONNECTION)
