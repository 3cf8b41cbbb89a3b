"""Start ranks, watch them, end them together."""

from __future__ import annotations

import os
import signal
import sys
import threading
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from intandem.runtime.launcher.child import Child
from intandem.runtime.launcher.environment import rank_environment
from intandem.runtime.launcher.host import StoreHost
from intandem.runtime.launcher.output import Output
from intandem.runtime.launcher.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

    from intandem.runtime.verdict import Verdict

MAX_RANKS = 256
"""Processes of one machine. More is taken for a slip of the finger."""

GRACE_S = 2.4
"""Seconds from a verdict until processes that have not ended are killed: none is left after 3 s."""


class Show(StrEnum):
    """What becomes of the output of ranks other than 0. Rank 0's stays as it is, always."""

    PREFIX = "prefix"
    """Whole lines, each after ``[rank 1]``; rank 0's too are whole, except on a terminal."""
    PLAIN = "plain"
    """Straight out, unmarked."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a launched run ended.

    Attributes:
        exit_code: 0 if every rank's is; otherwise the culprit's, 128 + signal for signals.
        verdict: who ended the run, or None.
    """

    exit_code: int
    verdict: Verdict | None


def launch(
    script: str | Path, *, ranks: int, args: Sequence[str] = (), show: Show = Show.PREFIX
) -> int:
    """Run ``python script args...`` as ``ranks`` local processes of one run.

    Args:
        script: path of a Python file.
        ranks: how many processes, from 1 to ``MAX_RANKS``.
        args: passed to the script as they are.
        show: what becomes of the output of ranks other than 0.

    Returns:
        0 if every rank ended with 0; otherwise the culprit's exit code, never 0.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if ``ranks`` is out of range.
    """
    return launch_command(script_command(script, args), ranks=ranks, show=show).exit_code


def script_command(script: str | Path, args: Sequence[str]) -> list[str]:
    """The command that runs a script.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    if not Path(script).is_file():
        msg = f"no such script: {script}"
        raise FileNotFoundError(msg)
    return [sys.executable, str(script), *args]


def module_command(module: str, args: Sequence[str]) -> list[str]:
    """The command that runs a module, as ``python -m`` does."""
    return [sys.executable, "-m", module, *args]


def launch_command(
    command: Sequence[str], *, ranks: int, show: Show = Show.PREFIX, grace_s: float = GRACE_S
) -> Outcome:
    """Run ``command`` as every rank and return once all have ended.

    Interrupts (SIGINT, SIGTERM, SIGHUP) are passed on to the ranks if this is the main thread; they
    then have ``STOP_S`` seconds for an end of their own. A second one kills them. Ranks die with
    the calling thread, whatever kills it.

    Args:
        command: program and arguments.
        ranks: how many processes, from 1 to ``MAX_RANKS``.
        show: what becomes of the output of ranks other than 0.
        grace_s: seconds from a verdict to the end of processes that do not end themselves.

    Raises:
        ValueError: if ``ranks`` is out of range.
        RunError: if the ranks' store cannot be opened.
    """
    if not 1 <= ranks <= MAX_RANKS:
        msg = f"ranks must be from 1 to {MAX_RANKS}, got {ranks}"
        raise ValueError(msg)
    host, output = StoreHost(), Output()
    children: list[Child] = []
    supervisor = Supervisor(children, host, output, grace_s)
    restore = _pass_on(supervisor.interrupt)
    try:
        for rank in range(ranks):
            env = rank_environment(rank, ranks, host.port)
            child = Child.start(rank, command, env, piped=_piped(rank, ranks, show))
            children.append(child)
            output.add(child)
        host.start()
        supervisor.run()
    finally:
        supervisor.kill()
        restore()
        output.close()
        host.close()
    return Outcome(supervisor.exit_code, supervisor.verdict)


def _piped(rank: int, num_ranks: int, show: Show) -> set[int]:
    """Which of standard output and error are passed on line by line.

    A terminal is rank 0's own, so that what it draws there (a progress bar) works; elsewhere its
    lines would be cut by those of other ranks.
    """
    if show is Show.PLAIN or num_ranks == 1:
        return set()
    return {number for number in (1, 2) if rank > 0 or not os.isatty(number)}


def _pass_on(interrupt: Callable[[int], None]) -> Callable[[], None]:
    """Call ``interrupt`` with each ending signal; returns what undoes that."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None

    def handler(signum: int, frame: FrameType | None) -> None:
        del frame
        interrupt(signum)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, handler) for number in numbers}

    def restore() -> None:
        for number, previous in before.items():
            signal.signal(number, previous)

    return restore
