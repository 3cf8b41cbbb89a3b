"""Sides take turns: in every round each has one, forwards in one round and backwards in the next.

    round 0:  A B C
    round 1:  C B A
    round 2:  A B C

What drifts slowly, such as the temperature of a processor, is then in all sides alike.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


class Turn(NamedTuple):
    """One side's turn in one round."""

    round: int
    side: str


def turns(sides: Sequence[str], num_rounds: int) -> Iterator[Turn]:
    """Yield all turns in order."""
    for number in range(num_rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            yield Turn(number, side)


def time_left_s(done: int, total: int, passed_s: float) -> float:
    """Return the seconds that are left if what is left goes on as what is done did."""
    return passed_s / done * (total - done) if done else 0.0


class Progress:
    """Says on standard error how far a benchmark is and how long it may still take."""

    def __init__(
        self, total: int, what: str, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._total, self._what, self._clock = total, what, clock
        self._done, self._began_s, self._told_s = 0, clock(), -1e9

    def line(self) -> str:
        """What is told."""
        passed_s = self._clock() - self._began_s
        left_s = time_left_s(self._done, self._total, passed_s)
        return (
            f"{self._what}: {self._done} of {self._total}, "
            f"{passed_s / 60:.1f} min passed, about {left_s / 60:.1f} min left"
        )

    def advance(self, amount: int = 1) -> None:
        """Count what is done; tell it at the end, and every few seconds before."""
        self._done += amount
        if self._done >= self._total or self._clock() - self._told_s > 5:
            self._told_s = self._clock()
            print(self.line(), file=sys.stderr, flush=True)


def take_turns(
    sides: Sequence[str], num_rounds: int, run: Callable[[str], float], what: str
) -> dict[str, list[float]]:
    """Return what ``run`` returned for every side, in the order of rounds."""
    found: dict[str, list[float]] = {side: [] for side in sides}
    progress = Progress(len(sides) * num_rounds, what)
    for turn in turns(sides, num_rounds):
        found[turn.side].append(run(turn.side))
        progress.advance()
    return found
