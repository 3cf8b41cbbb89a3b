"""Which process this is, and whether another one on the same host still lives (Linux)."""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import suppress
from enum import Enum
from pathlib import Path

from intandem.runtime.verdict import Origin


class Life(Enum):
    """What can be told of a process from outside."""

    UNKNOWN = "unknown"
    """It is on another host, or the system does not tell."""
    ALIVE = "alive"
    HELD = "held"
    """By a debugger: somebody looks at it and will let it go on."""
    STOPPED = "stopped"
    """By SIGSTOP or a terminal."""
    DEAD = "dead"


def this_process(trail_fd: int = -1) -> Origin:
    """Identity of the calling process; ``started`` is 0 where the system does not tell."""
    pid = os.getpid()
    return Origin(_host(), pid, _stat(pid)[1], trail_fd, time.monotonic_ns())


def life_of(origin: Origin, *, seen_from: Origin) -> Life:
    """How the process ``origin`` is, as far as the process ``seen_from`` can tell."""
    if origin.host != seen_from.host or seen_from.started == 0:
        return Life.UNKNOWN
    state, started = _stat(origin.pid)
    if started != origin.started or state in {"Z", "X"}:
        return Life.DEAD
    return {"T": Life.STOPPED, "t": Life.HELD}.get(state, Life.ALIVE)


def kill(origin: Origin, *, seen_from: Origin) -> None:
    """End the process ``origin`` if it is another one on this host, and still the same."""
    if origin.pid == seen_from.pid:
        return
    if life_of(origin, seen_from=seen_from) in {Life.ALIVE, Life.STOPPED}:
        with suppress(OSError):
            os.kill(origin.pid, signal.SIGKILL)


def _host() -> str:
    """Names a table of processes: containers on one machine have several."""
    try:
        table = Path("/proc/self/ns/pid").readlink().name
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return socket.gethostname()
    return f"{boot} {table}"


def _stat(pid: int) -> tuple[str, int]:
    """State letter and start time (field 22 of ``/proc/PID/stat``); ("", 0) if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
    except OSError:
        return "", 0
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])
