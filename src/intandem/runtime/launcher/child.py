"""One rank's process, as its launcher sees it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence, Set

_PR_SET_PDEATHSIG = 1


class Child:
    """A process in a session of its own, so that whatever it starts can be ended with it.

    Attributes:
        rank: of this process.
        process: its streams and id; never wait on it directly.
        status: exit code, or minus the signal that killed it; None while it lives.
        stopped: it is stopped, by SIGSTOP or a debugger.
        killed_here: it was this launcher that killed it.
    """

    def __init__(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        self.rank = rank
        self.process = process
        self.status: int | None = None
        self.stopped = False
        self.killed_here = False

    @classmethod
    def start(
        cls, rank: int, command: Sequence[str], env: Mapping[str, str], *, piped: Set[int]
    ) -> Child:
        """Start ``command`` as ``rank``; it dies with the calling thread.

        Args:
            rank: rank 0 keeps this process's standard input, the others get none.
            command: program and arguments.
            env: whole environment.
            piped: of 1 and 2 (standard output and error), those that come back through pipes
                instead of going straight out.
        """
        process = subprocess.Popen(
            list(command),
            env=dict(env),
            stdin=None if rank == 0 else subprocess.DEVNULL,
            stdout=subprocess.PIPE if 1 in piped else None,
            stderr=subprocess.PIPE if 2 in piped else None,
            start_new_session=True,
            preexec_fn=_die_with_parent(),
        )
        return cls(rank, process)

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self.status is None

    def poll(self) -> None:
        """Bring ``status`` and ``stopped`` up to date, without waiting."""
        if self.status is not None:
            return
        while True:
            flags = os.WNOHANG | os.WUNTRACED | os.WCONTINUED
            pid, status = os.waitpid(self.process.pid, flags)
            if pid == 0:
                return
            if os.WIFSTOPPED(status) or os.WIFCONTINUED(status):
                self.stopped = os.WIFSTOPPED(status)
                continue
            self.status = os.waitstatus_to_exitcode(status)
            self.process.returncode = self.status
            return

    def signal(self, signum: int) -> None:
        """Send ``signum`` to this process alone."""
        if self.is_alive:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, signum)

    def kill(self) -> None:
        """End it and everything in its session's process group, stopped or not."""
        self.killed_here = self.killed_here or self.is_alive
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.signal(signal.SIGCONT)

    def wait(self) -> None:
        """Wait until it has ended."""
        if self.status is None:
            _, status = os.waitpid(self.process.pid, 0)
            self.status = self.process.returncode = os.waitstatus_to_exitcode(status)


def _die_with_parent() -> Callable[[], None] | None:
    """What a new process does first so that it never outlives the one that made it (Linux)."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def ask_for_signal() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return ask_for_signal
