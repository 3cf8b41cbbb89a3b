"""When the operations of rows end: the same times as ``simulate`` gives, found faster."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from intandem.planner.problem import Problem, Rows

_FORGIVEN = 1e-9
"""Share of a limit that rounding may add up to."""


@dataclass(frozen=True, slots=True)
class Run:
    """How rows run.

    Attributes:
        value_s: what the objective measures, in seconds.
        end_s: end of every operation.
        arrival_s: when what each operation waits for has arrived.
    """

    value_s: float
    end_s: list[float]
    arrival_s: list[float]


def run_rows(  # noqa: C901  (calls in this loop would double what a search takes)
    problem: Problem, rows: Rows, limit_s: float = math.inf
) -> Run | None:
    """Run ``rows``; None if they wait for each other forever, or come to take over ``limit_s``.

    Each rank does its row in order; messages of one link are sent in the order they are made.
    """
    counts_first = problem.layout.objective == "global"
    forgiven_s = _FORGIVEN * limit_s if limit_s < math.inf else 0.0
    spare_s = [limit_s + forgiven_s - busy for busy in problem.busy_s]
    arrival, end = problem.arrival[:], [0.0] * problem.num_operations
    seconds, following, delay_s = problem.seconds, problem.following, problem.delay_s
    link_s, link = problem.link_s, problem.link
    free_s = [0.0] * (len(rows) * len(rows))
    waiting: dict[int, int] = {}
    place, clock = [0] * len(rows), [0.0] * len(rows)
    ready = list(range(len(rows)))
    while ready:
        rank = ready.pop()
        row, now = rows[rank], clock[rank]
        for index in range(place[rank], len(row)):
            operation = row[index]
            came = arrival[operation]
            if came < 0:
                waiting[operation] = rank
                place[rank], clock[rank] = index, now
                break
            if came > now:
                if index or counts_first:
                    spare_s[rank] -= came - now
                    if spare_s[rank] < 0:
                        return None
                now = came
            now += seconds[operation]
            end[operation] = now
            to, busy_s, sent_s = following[operation], link_s[operation], now
            if busy_s:
                edge = link[operation]
                if free_s[edge] > now:
                    sent_s = free_s[edge]
                sent_s += busy_s
                free_s[edge] = sent_s
            arrival[to] = sent_s + delay_s[operation]
            if to in waiting:
                ready.append(waiting.pop(to))
    if waiting:
        return None
    return Run(_value_s(problem, rows, end), end, arrival)


def _value_s(problem: Problem, rows: Rows, end: list[float]) -> float:
    if problem.layout.objective == "global":
        return max(end[row[-1]] for row in rows if row)
    seconds = problem.seconds
    return max(end[row[-1]] - end[row[0]] + seconds[row[0]] for row in rows if row)


def fits(problem: Problem, row: list[int], cap: int) -> bool:
    """Whether a rank that does ``row`` stays within ``cap``."""
    taken, freed = problem.taken, problem.freed
    held = 0
    for operation in row:
        held += taken[operation]
        if held > cap:
            return False
        held -= freed[operation]
    return True
