"""Health of a run whose ranks are threads of one process."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from intandem.errors import PeerFailureError

if TYPE_CHECKING:
    from intandem.runtime.watch import Position


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
    """One rank's end of the shared knowledge; see ``Watch``. Made by ``local_watches``."""

    def __init__(self, rank: int, board: _Board) -> None:
        self.rank = rank
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
        self._board.positions[self.rank] = position

    def fail(self, error: BaseException) -> None:
        """Say that this rank cannot go on; only the first failure of a run is kept."""
        board = self._board
        with board.lock:
            if board.failure is None:
                board.failure = Failure(self.rank, board.positions[self.rank], error)

    def suspect(self, reason: str) -> None:
        """Nothing to look into: threads of one process do not die unnoticed."""

    def check(self) -> None:
        """Return while no other rank has failed.

        Raises:
            PeerFailureError: naming the culprit, its position and its error, which is the cause.
        """
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
