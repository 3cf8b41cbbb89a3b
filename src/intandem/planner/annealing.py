"""Local search: simulated annealing on rows.

One operation, or a few at once, move along their row; that is kept if it makes the schedule no
longer, or, while it is warm, a little longer. The objective can only fall if every critical path is
broken, so most moves take an operation of one.
A move may not take an operation past one of its own lane, nor a W past its I; memory is that of the
row alone; rows that wait for each other forever are found when they are run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from intandem.planner.clock import Run, fits, run_rows

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from intandem.planner.problem import Problem, Rows

_CRITICAL_SHARE = 0.8
"""Share of moves that take an operation of a critical path."""


_BLOCK_SHARE = 0.3
"""Share of moves that exchange a block of operations with what is beside it."""


@dataclass(frozen=True, slots=True)
class Warmth:
    """How much longer is accepted, and for how long.

    Attributes:
        num_moves: moves to try.
        first_s: seconds of temperature at the beginning.
        last_s: and at the end.
    """

    num_moves: int
    first_s: float
    last_s: float


@dataclass(frozen=True, slots=True)
class Annealed:
    """The best rows met, and what they take."""

    rows: Rows
    value_s: float


def anneal(
    problem: Problem,
    rows: Rows,
    warmth: Warmth,
    random: Random,
    target_s: float,
    on_better: Callable[[float], None] = lambda _: None,
) -> Annealed:
    """Improve ``rows``, which run and fit, until ``target_s`` or the end of ``warmth``."""
    walk = _Walk(problem, rows, random)
    cooling = (warmth.last_s / warmth.first_s) ** (1 / max(1, warmth.num_moves))
    temperature_s = warmth.first_s
    for _ in range(warmth.num_moves):
        if walk.best_s <= target_s:
            break
        temperature_s *= cooling
        if walk.move(temperature_s):
            on_better(walk.best_s)
    return Annealed(walk.best_rows, walk.best_s)


class _Walk:
    def __init__(self, problem: Problem, rows: Rows, random: Random) -> None:
        run = run_rows(problem, rows)
        if run is None:
            msg = "rows wait for each other forever; expected rows that run"
            raise ValueError(msg)
        self._problem = problem
        self._random = random
        self._rows = [list(row) for row in rows]
        self._run: Run = run
        self._place = [0] * problem.num_operations
        for row in rows:
            for index, operation in enumerate(row):
                self._place[operation] = index
        self._path = self._critical_path()
        self.best_s = run.value_s
        self.best_rows = [list(row) for row in rows]

    def move(self, temperature_s: float) -> bool:
        """Try one move; whether the best has become shorter."""
        problem, random = self._problem, self._random.random
        if random() < _CRITICAL_SHARE:
            operation = self._path[int(random() * len(self._path))]
        else:
            operation = int(random() * problem.num_operations)
        rank = problem.rank[operation]
        row, source = self._rows[rank], self._place[operation]
        draw = self._block if random() < _BLOCK_SHARE else self._single
        begin, middle, end = draw(row, source)
        if not begin < middle < end:
            return False
        before, after = row[begin:middle], row[middle:end]
        row[begin:end] = after + before
        limit_s = self._run.value_s - temperature_s * math.log(1.0 - random())
        is_fit = fits(problem, row, problem.caps[rank])
        run = run_rows(problem, self._rows, limit_s) if is_fit else None
        if run is None or run.value_s > limit_s:
            row[begin:end] = before + after
            return False
        self._run = run
        for index in range(begin, end):
            self._place[row[index]] = index
        self._path = self._critical_path()
        if run.value_s >= self.best_s:
            return False
        self.best_s = run.value_s
        self.best_rows = [list(row) for row in self._rows]
        return True

    def _single(self, row: list[int], source: int) -> tuple[int, int, int]:
        """Draw where one operation goes: mostly near, never past what has to stay."""
        count, stages = self._problem.num_microbatches, self._problem.num_stages
        step = 1 if self._random.random() < 0.5 else -1
        length = 1 if self._random.random() < 0.4 else self._length()
        lane, mb = divmod(row[source], count)
        stage, index, last = lane % stages, source, len(row) - 1
        for _ in range(length):
            following = index + step
            if not 0 <= following <= last:
                break
            other, other_mb = divmod(row[following], count)
            if other == lane or (other_mb == mb and other % stages == stage):
                break
            index = following
        return (source, source + 1, index + 1) if step > 0 else (index, source, source + 1)

    def _block(self, row: list[int], source: int) -> tuple[int, int, int]:
        """Draw two neighbouring parts to exchange, one of 2 or 3 operations; empty if not allowed.

        Moved one by one, they might not fit in between.
        """
        random, count = self._random.random, self._problem.num_microbatches
        size = 2 if random() < 0.6 else 3
        begin, length = max(0, source - int(random() * size)), self._length()
        middle, end = begin + size, min(len(row), begin + size + length)
        if random() < 0.5:
            begin, middle, end = max(0, begin - length), begin, min(len(row), begin + size)
        stages = self._problem.num_stages
        lanes = {operation // count for operation in row[begin:middle]}
        units = {(o // count % stages, o % count) for o in row[begin:middle]}
        for operation in row[middle:end]:
            lane, mb = divmod(operation, count)
            if lane in lanes or (lane % stages, mb) in units:
                return 0, 0, 0
        return begin, middle, end

    def _length(self) -> int:
        return 1 + int(-3.0 * math.log(1.0 - self._random.random()))

    def _critical_path(self) -> list[int]:
        """One path that decides the objective, from its end back to time 0."""
        problem, rows, end = self._problem, self._rows, self._run.end_s
        arrival, seconds = self._run.arrival_s, problem.seconds
        path: list[int] = []
        operation = self._last_operation()
        while True:
            path.append(operation)
            start = end[operation] - seconds[operation]
            index, row = self._place[operation], rows[problem.rank[operation]]
            before = row[index - 1] if index else -1
            by_row = before >= 0 and end[before] >= arrival[operation]
            other = problem.previous[operation]
            by_message = other >= 0 and (before < 0 or arrival[operation] >= end[before])
            if start <= 0 or not (by_row or by_message):
                return path
            both = by_row and by_message
            take_row = by_row and (not both or self._random.random() < 0.5)
            operation = before if take_row else other

    def _last_operation(self) -> int:
        rows, end, seconds = self._rows, self._run.end_s, self._problem.seconds
        if self._problem.layout.objective == "global":
            return max((row[-1] for row in rows if row), key=end.__getitem__)
        spans = ((end[row[-1]] - end[row[0]] + seconds[row[0]], row[-1]) for row in rows if row)
        return max(spans)[1]
