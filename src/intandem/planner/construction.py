"""List scheduling: every rank that is free does what its rules put first, in order of time.

Memory is looked ahead for, so that no order ends in a dead lock: see [Note: room to finish].

[Note: room to finish] Let j be the oldest micro-batch that has not been through all stages of a
rank. A forward of a younger one may start only if, besides what the younger ones then hold, all of
j would fit. On every rank, then, j can go on to its end as soon as older ones have; its W's free
everything; and so on with j + 1. For one stage per rank this says no more than that the forward
itself fits. Room for what one backward needs beyond its forward is kept as well.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intandem.planner.problem import Layout, Problem, Rows


@dataclass(frozen=True, slots=True)
class Rules:
    """What a rank puts first. Seconds of bias are added to the time an operation could start.

    Attributes:
        limits: per rank, memory that forwards may fill; at least what one micro-batch needs.
        stage_limits: per stage, micro-batches that may have done F and not yet I or B.
        forward_bias_s: per stage, seconds that a forward waits for a backward.
        backward_bias_s: per stage, to tell backwards of one rank apart.
        eager: do a W when nothing else is known to come.
        fills: per rank, do a W in a gap of at least this share of its length.
    """

    limits: Sequence[int]
    stage_limits: Sequence[int]
    forward_bias_s: Sequence[float]
    backward_bias_s: Sequence[float]
    eager: bool
    fills: Sequence[float]


def smallest_caps(layout: Layout) -> list[int]:
    """Per rank, the least memory with which every micro-batch can be finished."""
    memory, placement = layout.memory, layout.placement
    return [
        sum(memory.forward[s] for s in stages) + max((memory.extra(s) for s in stages), default=0)
        for stages in map(placement.stages_of, range(placement.num_ranks))
    ]


def list_rows(problem: Problem, rules: Rules) -> Rows:
    """Build rows by ``rules``, within the caps of ``problem``.

    The caps are at least ``smallest_caps``.
    """
    lister = _Lister(problem, rules)
    lister.run()
    return lister.rows


def refilled_rows(problem: Problem, rows: Rows, rules: Rules) -> Rows:
    """Keep the order of forwards and backwards of ``rows`` and put W's anew, by ``rules``."""
    filler = _Filler(problem, rules, rows)
    filler.run()
    return filler.rows


class _Lister:
    """State of all ranks while rows are built. ``done[lane]`` counts operations per lane."""

    def __init__(self, problem: Problem, rules: Rules) -> None:
        num_ranks = problem.num_ranks
        self.rows: Rows = [[] for _ in range(num_ranks)]
        self._problem = problem
        self._rules = rules
        self._done = [0] * problem.layout.num_lanes
        self._arrival = problem.arrival[:]
        self._clock = [0.0] * num_ranks
        self._free_s = [0.0] * (num_ranks * num_ranks)
        self._used = [0] * num_ranks
        self._held = [0] * num_ranks
        self._taken = problem.layout.memory.forward
        self._extra = [problem.layout.memory.extra(s) for s in range(problem.num_stages)]
        self._whole = [sum(self._taken[s] for s in stages) for stages in problem.stages]
        spare = [max((self._extra[s] for s in stages), default=0) for stages in problem.stages]
        self._limits = [
            min(cap - more, max(limit, whole))
            for cap, more, limit, whole in zip(
                problem.caps, spare, rules.limits, self._whole, strict=True
            )
        ]
        self._queue = [(0.0, rank) for rank in range(num_ranks) if problem.stages[rank]]

    def run(self) -> None:
        """Take ranks in order of time."""
        clock, queue = self._clock, self._queue
        left = self._problem.num_operations
        while left:
            if not queue:
                self._unblock()
                left -= 1
                continue
            now, rank = heapq.heappop(queue)
            if now < clock[rank]:
                continue
            found = self._choose(rank, now)
            if found is None:
                continue
            start_s, operation = found
            if start_s > now:
                clock[rank] = start_s
                heapq.heappush(queue, (start_s, rank))
                continue
            self._place(rank, operation, now)
            left -= 1

    def _unblock(self) -> None:
        """All ranks only wait: the first that has a W does it, those after it look again."""
        stages = self._problem.stages
        ranks = sorted((self._clock[rank], rank) for rank in range(len(stages)) if stages[rank])
        pending = [self._pending(rank) for _, rank in ranks]
        first = next(place for place, operation in enumerate(pending) if operation >= 0)
        self._queue += ranks[first + 1 :]
        now, rank = ranks[first]
        self._place(rank, pending[first], now)

    def _pending(self, rank: int) -> int:
        """W of the stage that has the most of them to do, or -1."""
        stages, done = self._problem.num_stages, self._done
        late = [
            (done[stages + stage] - done[2 * stages + stage], -stage)
            for stage in self._problem.stages[rank]
        ]
        most, stage = max(late)
        lane = 2 * stages - stage
        return lane * self._problem.num_microbatches + done[lane] if most else -1

    def _choose(  # noqa: C901, PLR0912, PLR0915  (inner loop: calls would double its time)
        self, rank: int, now: float
    ) -> tuple[float, int] | None:
        problem, rules = self._problem, self._rules
        done, arrival = self._done, self._arrival
        count, num_stages = problem.num_microbatches, problem.num_stages
        room = problem.caps[rank] - self._used[rank]
        forward_room = min(room, self._limits[rank] - self._used[rank])
        best, best_key, best_start = -1, math.inf, 0.0
        blocked, pending = False, -1
        most = 0
        split = problem.layout.split
        for stage in problem.stages[rank]:
            lane = num_stages + stage
            forwards, backwards = done[stage], done[lane]
            if split and (waiting := backwards - done[lane + num_stages]) > most:
                most, pending = waiting, stage
            if backwards < forwards:
                came = arrival[lane * count + backwards]
                if came >= 0:
                    start = came if came > now else now
                    key = start + rules.backward_bias_s[stage]
                    if self._extra[stage] > room:
                        blocked = blocked or start <= now
                    elif key < best_key:
                        best, best_key, best_start = lane * count + backwards, key, start
            if forwards < count and forwards - backwards < rules.stage_limits[stage]:
                came = arrival[stage * count + forwards]
                if came < 0:
                    continue
                start = came if came > now else now
                key = start + rules.forward_bias_s[stage]
                if key < best_key and self._may_forward(rank, stage):
                    if self._taken[stage] > forward_room:
                        blocked = blocked or start <= now
                    else:
                        best, best_key, best_start = stage * count + forwards, key, start
        if pending >= 0:
            lane = 2 * num_stages + pending
            operation = lane * count + done[lane]
            if best < 0:
                fill = rules.eager or blocked
            else:
                gap = best_start - now
                fill = gap > 0 and (
                    blocked or problem.seconds[operation] * rules.fills[rank] <= gap
                )
            if fill:
                return now, operation
        return None if best < 0 else (best_start, best)

    def _may_forward(self, rank: int, stage: int) -> bool:
        """Look ahead: [Note: room to finish]."""
        limit, taken = self._limits[rank], self._taken
        if self._held[rank] + taken[stage] > limit:
            return False
        stages = self._problem.stages[rank]
        if len(stages) == 1:
            return True
        done = self._done
        done[stage] += 1
        oldest = min(done[s] for s in stages)
        younger = sum(taken[s] * (done[s] - 1 - oldest) for s in stages if done[s] > oldest)
        done[stage] -= 1
        return younger + self._whole[rank] <= limit

    def _place(self, rank: int, operation: int, now: float) -> None:
        problem = self._problem
        lane = operation // problem.num_microbatches
        kind, stage = divmod(lane, problem.num_stages)
        self._done[lane] += 1
        self.rows[rank].append(operation)
        now += problem.seconds[operation]
        self._clock[rank] = now
        self._used[rank] += problem.taken[operation] - problem.freed[operation]
        if kind < 2:
            self._held[rank] += self._taken[stage] if kind == 0 else -self._taken[stage]
        heapq.heappush(self._queue, (now, rank))
        to = problem.following[operation]
        if to == problem.num_operations:
            return
        busy_s = problem.link_s[operation]
        if busy_s:
            link = problem.link[operation]
            now = self._free_s[link] = max(self._free_s[link], now) + busy_s
        came = self._arrival[to] = now + problem.delay_s[operation]
        other = problem.rank[to]
        if other != rank:
            heapq.heappush(self._queue, (max(came, self._clock[other]), other))


class _Filler(_Lister):
    """Only the next forward or backward of a given order, or a W."""

    def __init__(self, problem: Problem, rules: Rules, order: Rows) -> None:
        super().__init__(problem, rules)
        late = 2 * problem.num_stages * problem.num_microbatches
        self._order = [[o for o in row if o < late] for row in order]
        self._next = [0] * problem.num_ranks
        self._late = late

    def _choose(self, rank: int, now: float) -> tuple[float, int] | None:
        problem, rules, place = self._problem, self._rules, self._next[rank]
        late = self._pending(rank)
        if place == len(self._order[rank]):
            return None if late < 0 else (now, late)
        operation = self._order[rank][place]
        came = self._arrival[operation]
        start_s = max(came, now)
        stage = operation // problem.num_microbatches % problem.num_stages
        forward = operation < self._late // 2
        need = self._taken[stage] if forward else self._extra[stage]
        blocked = self._used[rank] + need > problem.caps[rank]
        if late >= 0:
            gap = start_s - now
            fits = gap > 0 and problem.seconds[late] * rules.fills[rank] <= gap
            if blocked or (rules.eager if came < 0 else fits):
                return now, late
        return None if came < 0 or blocked else (start_s, operation)

    def _pending(self, rank: int) -> int:
        """W that has waited longest, or -1."""
        stages, count, done = self._problem.num_stages, self._problem.num_microbatches, self._done
        waiting = [
            (done[2 * stages + s], (2 * stages + s) * count + done[2 * stages + s])
            for s in self._problem.stages[rank]
            if done[2 * stages + s] < done[stages + s]
        ]
        return min(waiting)[1] if waiting else -1

    def _place(self, rank: int, operation: int, now: float) -> None:
        if operation < self._late:
            self._next[rank] += 1
        super()._place(rank, operation, now)
