"""Where the search starts: rows by many different rules, the likely ones first."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import TYPE_CHECKING

from intandem.planner.construction import Rules

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

    from intandem.planner.problem import Layout, Problem

_DEPTHS = (math.inf, 1.0, 2.0, 1.5, 3.0)
"""Forwards in flight, relative to what keeps the slowest rank busy while the first one returns."""

_NO_LIMIT = 1 << 62


def rule_sets(problem: Problem, random: Random) -> Iterator[Rules]:
    """Yield rules without end: first every depth with plain preferences, then drawn ones."""
    per_step_s = busiest_s(problem.layout)
    busy = [0.0 if s >= 0.9 * per_step_s else 1.0 for s in busy_s(problem.layout)]
    ones = [1.0] * problem.num_ranks
    plain = _plain(problem)
    for eager, depth, fills in itertools.product((True, False), _DEPTHS, (ones, busy)):
        yield replace(plain, limits=_limits(problem, depth), eager=eager, fills=fills)
    while True:
        yield _drawn(problem, random, per_step_s)


def _plain(problem: Problem) -> Rules:
    """Of what could start at once: backwards of early stages first, then forwards of late ones."""
    num_stages, unit_s = problem.num_stages, 1e-6 * busiest_s(problem.layout)
    return Rules(
        limits=_limits(problem, math.inf),
        stage_limits=[_NO_LIMIT] * num_stages,
        forward_bias_s=[unit_s * (num_stages * 2 - s) for s in range(num_stages)],
        backward_bias_s=[unit_s * s for s in range(num_stages)],
        eager=True,
        fills=[1.0] * problem.num_ranks,
    )


def _drawn(problem: Problem, random: Random, per_step_s: float) -> Rules:
    num_stages = problem.num_stages
    depth = random.choice((*_DEPTHS, random.uniform(0.5, 2.0)))
    jitter_s = random.choice((0.0, 0.2, 1.0)) * per_step_s / 2
    spread_s = random.choice((0.0, 0.0, 1.0, 4.0)) * per_step_s
    lead_s = random.choice((0.0, 0.01, 1.0, -0.01)) * per_step_s
    few = random.random() < 0.5
    limits = [random.choice((1, 2, 3, 4, 6, 9)) if few else _NO_LIMIT for _ in range(num_stages)]
    forward = [
        lead_s + jitter_s * random.random() + spread_s * random.random() - 1e-6 * per_step_s * s
        for s in range(num_stages)
    ]
    backward = [jitter_s * random.random() + 1e-6 * per_step_s * s for s in range(num_stages)]
    eager = random.random() < 0.6
    same = [random.choice((1.0, 1.0, 0.5, 0.2, 0.0))] * problem.num_ranks
    fills = random.choice((same, [random.choice((0.0, 1.0)) for _ in same]))
    return Rules(_limits(problem, depth), limits, forward, backward, eager, fills)


def busiest_s(layout: Layout) -> float:
    """Seconds that one micro-batch takes on the busiest rank."""
    return max(busy_s(layout))


def busy_s(layout: Layout) -> list[float]:
    """Seconds that one micro-batch takes, per rank."""
    placement = layout.placement
    seconds = [0.0] * placement.num_ranks
    for lane in range(layout.num_lanes):
        seconds[placement.rank_of[lane % placement.num_stages]] += layout.lane_s(lane)
    return seconds


def _limits(problem: Problem, depth: float) -> list[int]:
    """Memory for as many forwards as start on a rank before the first one's backward is done."""
    if math.isinf(depth):
        return [_NO_LIMIT] * problem.num_ranks
    layout, num_stages = problem.layout, problem.num_stages
    per_step_s = busiest_s(problem.layout) or 1.0
    back_s, counts = 0.0, [0] * num_stages
    for stage in reversed(range(num_stages)):
        there, here = stage, num_stages + stage
        back_s += sum(layout.lane_s(lane) for lane in range(stage, layout.num_lanes, num_stages))
        counts[stage] = max(1, math.ceil(depth * back_s / per_step_s - 1e-9))
        if stage:
            back_s += sum(layout.hop_s(there - 1)) + sum(layout.hop_s(here))
    taken = layout.memory.forward
    return [sum(counts[s] * taken[s] for s in stages) for stages in problem.stages]
