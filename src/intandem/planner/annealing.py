"""Local search: simulated annealing on rows.

One operation moves along its row; that is kept if it makes the schedule no longer, or, while it is
warm, a little longer. The objective can only fall if every critical path is broken, so most moves
take an operation of one.
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
        problem, random = self._problem, self._random
        if random.random() < _CRITICAL_SHARE:
            operation = self._path[int(random.random() * len(self._path))]
        else:
            operation = int(random.random() * problem.num_operations)
        rank = problem.rank[operation]
        row, source = self._rows[rank], self._place[operation]
        target = self._target(row, source)
        if target == source:
            return False
        del row[source]
        row.insert(target, operation)
        run = run_rows(problem, self._rows) if fits(problem, row, problem.caps[rank]) else None
        if run is None or not self._accepts(run.value_s, temperature_s):
            del row[target]
            row.insert(source, operation)
            return False
        self._run = run
        for index in range(min(source, target), max(source, target) + 1):
            self._place[row[index]] = index
        self._path = self._critical_path()
        if run.value_s >= self.best_s:
            return False
        self.best_s = run.value_s
        self.best_rows = [list(row) for row in self._rows]
        return True

    def _accepts(self, value_s: float, temperature_s: float) -> bool:
        longer_s = value_s - self._run.value_s
        return longer_s <= 0 or self._random.random() < math.exp(-longer_s / temperature_s)

    def _target(self, row: list[int], source: int) -> int:
        """Draw where to go: mostly near, never past what has to stay before or after."""
        random, count = self._random.random, self._problem.num_microbatches
        stages = self._problem.num_stages
        step = 1 if random() < 0.5 else -1
        length = 1 if random() < 0.4 else 1 + int(-3.0 * math.log(1.0 - random()))
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
        return index

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
