"""The clocks of processes, put on that of rank 0.

Processes of one machine read the same clock. Between machines the difference is estimated as NTP
does: a process asks rank 0 for its time, and takes it for the time in the middle between asking and
being answered. Of several rounds the fastest counts, and half of what it took is the most that the
estimate can be wrong.
"""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NUM_ROUNDS = 8
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Board(Protocol):
    """Where processes leave facts for each other."""

    def leave(self, place: str, value: bytes) -> None:
        """Put a value where other processes can read it."""
        ...

    def read(self, place: str) -> bytes:
        """Return what a process has left there, as soon as it has."""
        ...


@dataclass(frozen=True, slots=True)
class Offset:
    """What is to be added to a clock, in seconds, and how wrong that can be."""

    add_s: float = 0.0
    error_s: float = 0.0


def host_identity() -> str:
    """Return a text that is the same for processes that read the same clock."""
    try:
        namespace = os.readlink("/proc/self/ns/time")
        return f"{_BOOT.read_text(encoding='ascii').strip()} {namespace}"
    except OSError:
        return platform.node()


def offset_to_first(
    board: Board,
    hosts: Sequence[str],
    rank: int,
    place: str,
    clock: Callable[[], float] = time.perf_counter,
) -> Offset:
    """Return what makes the clock of ``rank`` that of rank 0. Collective where hosts differ.

    The first rank of every host but rank 0's asks rank 0, and tells the others of its host.

    Args:
        board: of all processes.
        hosts: ``host_identity`` of every process, in rank order.
        rank: of this process.
        place: where on the board; another one each time.
        clock: of this process.
    """
    asking = [r for r, host in enumerate(hosts) if hosts.index(host) == r and host != hosts[0]]
    if rank == 0:
        for other in asking:
            _answer(board, f"{place}/{other}", clock)
        return Offset()
    if hosts[rank] == hosts[0]:
        return Offset()
    first = hosts.index(hosts[rank])
    told = f"{place}/{first}/found"
    if rank == first:
        found = _ask(board, f"{place}/{rank}", clock)
        board.leave(told, f"{found.add_s!r} {found.error_s!r}".encode())
        return found
    add_s, error_s = map(float, board.read(told).split())
    return Offset(add_s, error_s)


def _ask(board: Board, place: str, clock: Callable[[], float]) -> Offset:
    found = []
    for number in range(NUM_ROUNDS):
        asked_s = clock()
        board.leave(f"{place}/asked/{number}", b"")
        theirs_s = float(board.read(f"{place}/answered/{number}"))
        answered_s = clock()
        middle_s, error_s = (asked_s + answered_s) / 2, (answered_s - asked_s) / 2
        found.append(Offset(theirs_s - middle_s, error_s))
    return min(found, key=lambda offset: offset.error_s)


def _answer(board: Board, place: str, clock: Callable[[], float]) -> None:
    for number in range(NUM_ROUNDS):
        board.read(f"{place}/asked/{number}")
        board.leave(f"{place}/answered/{number}", repr(clock()).encode())
