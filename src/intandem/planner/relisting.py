"""Rows listed again, from the end or from the beginning, in the order that they have.

Every rank that is free takes the first operation of its old row that is there, if that leaves
memory for those that it overtakes. From the end, everything comes as late as it can, and what has
to be done early for the end to be short moves forward; then again from the beginning. In project
scheduling this is known as forward-backward improvement (Li and Willis, 1992).

[Note: no order gets stuck] Before and after each step, what is left of a row fits in memory in its
old order, and the old rows run. So somewhere the first operation that is left can be done, and
that is always allowed.
"""

from __future__ import annotations

import math
from heapq import heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from intandem.planner.problem import Problem, Rows

_WINDOW = 60
"""Operations of a row, from the first that is left, among which the next one is looked for."""

_Edge = tuple[int, int, float]


def relisted(problem: Problem, rows: Rows, patience: float, *, from_end: bool) -> Rows:
    """Return ``rows``, which run and fit, listed again.

    Args:
        problem: what they are of.
        rows: what to keep to.
        patience: an operation does not overtake another that is known to come if this share of it
            would delay that one.
        from_end: whether the last ones are put first, as late as they can be.
    """
    lister = _Relister(problem, rows, patience, from_end=from_end)
    lister.run()
    return [row[::-1] for row in lister.rows] if from_end else lister.rows


class _Relister:
    """Ranks are visited when an operation of theirs ends or becomes ready."""

    def __init__(self, problem: Problem, rows: Rows, patience: float, *, from_end: bool) -> None:
        self.rows: Rows = [[] for _ in rows]
        self._problem, self._patience = problem, patience
        self._taken, self._freed = problem.taken, problem.freed
        if from_end:
            self._taken, self._freed = self._freed, self._taken
        self._left = [row[::-1] if from_end else row[:] for row in rows]
        self._num_lanes = [len({o // problem.num_microbatches for o in row}) for row in rows]
        self._held = [0] * len(rows)
        self._clock = [0.0] * len(rows)
        self._after: list[list[tuple[int, float]]] = [[] for _ in problem.seconds]
        self._num_before = [0] * problem.num_operations
        for first, second, delay_s in _edges(problem):
            source, target = (second, first) if from_end else (first, second)
            self._after[source].append((target, delay_s))
            self._num_before[target] += 1
        self._ready_s = [math.inf if num else 0.0 for num in self._num_before]
        self._came_s = [0.0] * problem.num_operations
        self._visits = [(0.0, rank) for rank in range(len(rows))]

    def run(self) -> None:
        """Put everything."""
        visits, clock = self._visits, self._clock
        while visits:
            now, rank = heappop(visits)
            if clock[rank] <= now:
                place = self._choose(rank, now)
                if place is not None:
                    self._put(rank, self._left[rank].pop(place), now)

    def _choose(self, rank: int, now: float) -> int | None:
        """Return the place of what comes next in what is left, or None to wait."""
        count, ready_s, seconds = (
            self._problem.num_microbatches,
            self._ready_s,
            self._problem.seconds,
        )
        taken, freed, patience = self._taken, self._freed, self._patience
        room = self._problem.caps[rank] - self._held[rank]
        passed, soon_s = set[int](), math.inf
        more = most = 0
        for place, operation in enumerate(self._left[rank][:_WINDOW]):
            lane = operation // count
            takes = taken[operation]
            grows = takes - freed[operation]
            if lane not in passed:
                if ready_s[operation] > now:
                    soon_s = min(soon_s, ready_s[operation])
                elif not place or (
                    now + patience * seconds[operation] <= soon_s
                    and takes <= room
                    and grows + most <= room
                ):
                    return place
                passed.add(lane)
                if len(passed) == self._num_lanes[rank]:
                    break
            most = max(most, more + takes)
            more += grows
        return None

    def _put(self, rank: int, operation: int, now: float) -> None:
        self.rows[rank].append(operation)
        self._held[rank] += self._taken[operation] - self._freed[operation]
        end_s = self._clock[rank] = now + self._problem.seconds[operation]
        heappush(self._visits, (end_s, rank))
        for target, delay_s in self._after[operation]:
            came_s = self._came_s[target] = max(self._came_s[target], end_s + delay_s)
            self._num_before[target] -= 1
            if not self._num_before[target]:
                self._ready_s[target] = came_s
                heappush(self._visits, (came_s, self._problem.rank[target]))


def _edges(problem: Problem) -> Iterator[_Edge]:
    """Yield what comes before what, with the seconds that lie between them."""
    for operation, to in enumerate(problem.following):
        if to < problem.num_operations:
            yield operation, to, problem.delay_s[operation] + problem.link_s[operation]
    if problem.layout.split:
        half = problem.num_stages * problem.num_microbatches
        for operation in range(half, 2 * half):
            yield operation, operation + half, 0.0
