"""Health of a run whose ranks are threads of one process."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from intandem.errors import PeerFailureError
from intandem.runtime.stacks import stack_of
from intandem.runtime.stillness import Glance, Stillness
from intandem.runtime.watch import after

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intandem.runtime.watch import Position

LOOK_S = 0.2
"""How often the thread that waits for ranks looks whether one of them hangs."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What ended a run.

    Attributes:
        rank: the culprit.
        position: where it was, or None if it had not begun.
        error: what it raised, with its traceback.
    """

    rank: int
    position: Position | None
    error: BaseException

    def __str__(self) -> str:
        where = "before its first action" if self.position is None else f"at {self.position}"
        return f"rank {self.rank} failed {where}: {type(self.error).__name__}: {self.error}"


class _Board:
    """What the watches of one run share. Each rank writes its own entries only."""

    def __init__(self, num_ranks: int) -> None:
        self.positions: list[Position | None] = [None] * num_ranks
        self.closed = [False] * num_ranks
        self.failure: Failure | None = None
        self.lock = threading.Lock()


class LocalWatch:
    """One rank's end of the shared knowledge; see ``Watch``. Made by ``local_watches``.

    Attributes:
        rank: whose.
        patient_step: the last in which something runs for the first time, or None.
        thread_id: of its thread, or None before that.
        num_checks: how often it has looked for a failure: grows while it waits.
        hangs: it was found to hang.
    """

    def __init__(self, rank: int, board: _Board) -> None:
        self.rank = rank
        self.patient_step: int | None = None
        self.thread_id: int | None = None
        self.num_checks = 0
        self.hangs = False
        self._board = board

    @property
    def positions(self) -> tuple[Position | None, ...]:
        """Where every rank was last seen, in rank order; None before its first instruction."""
        return tuple(self._board.positions)

    @property
    def failure(self) -> Failure | None:
        """What ended the run, or None while it is healthy."""
        return self._board.failure

    @property
    def closed(self) -> tuple[bool, ...]:
        """Which ranks have left in good order."""
        return tuple(self._board.closed)

    def at(self, position: Position) -> None:
        """Say where this rank is now."""
        self.thread_id = threading.get_ident()
        self._board.positions[self.rank] = position

    def be_patient(self, step: int) -> None:
        """Say that something runs for the first time in ``step``; see ``Watch.be_patient``."""
        self.patient_step = step

    def begin(self, what: str) -> None:
        """Say that this rank is at something between passes; see ``Watch.begin``."""
        self.at(after(self._board.positions[self.rank], what))

    def fail(self, error: BaseException) -> None:
        """Say that this rank cannot go on; only the first failure of a run is kept."""
        board = self._board
        with board.lock:
            if board.failure is None:
                board.failure = Failure(self.rank, board.positions[self.rank], error)

    def suspect(self, reason: str) -> None:
        """Nothing to look into: threads of one process do not die unnoticed."""

    def tick(self) -> None:
        """Say that this rank waits for another; see ``Watch.tick``."""
        self.num_checks += 1

    def check(self) -> None:
        """Return while no other rank has failed.

        Raises:
            PeerFailureError: naming the culprit, its position and its error, which is the cause.
        """
        self.num_checks += 1
        failure = self._board.failure
        if failure is not None and failure.rank != self.rank:
            raise PeerFailureError(str(failure)) from failure.error

    def close(self) -> None:
        """This rank leaves in good order."""
        self._board.closed[self.rank] = True


def local_watches(num_ranks: int) -> tuple[LocalWatch, ...]:
    """Return one watch per rank, all of one run."""
    board = _Board(num_ranks)
    return tuple(LocalWatch(rank, board) for rank in range(num_ranks))


class Lookout:
    """Finds a rank that hangs, of ranks that are threads. Used by the thread that waits for them.

    Args:
        watches: of all ranks.
        hang_s: that an action may take at least; see ``stillness``.
    """

    def __init__(self, watches: Sequence[LocalWatch], hang_s: float) -> None:
        self._watches = tuple(watches)
        self._each = [Stillness(hang_s) for _ in watches]
        self._looked_s = time.monotonic()

    def look(self) -> None:
        """Return while none hangs.

        Raises:
            PeerFailureError: naming the one that does; the others end at their next wait.
        """
        now_s = time.monotonic()
        passed_s, self._looked_s = min(now_s - self._looked_s, 2 * LOOK_S), now_s
        for watch, stillness in zip(self._watches, self._each, strict=True):
            position = watch.positions[watch.rank]
            seen = Glance(position, watch.num_checks, watch.patient_step, is_awaited=False)
            hang = stillness.look(seen, passed_s)
            if hang is None or (stack := stack_of(watch.thread_id)).is_debugged:
                continue
            watch.hangs = True
            msg = (
                f"rank {watch.rank} {hang} at {position}; threads cannot be ended, so it is left "
                f"where it is (stack of rank {watch.rank} below)\n{stack.text}"
            )
            error = PeerFailureError(msg)
            watch.fail(error)
            raise error
