"""The search's own clock and memory: those of the simulator, on any rows that run."""

import itertools
import random
from dataclasses import replace

import pytest
from test_search import uneven

from intandem.ir import Placement, Schedule
from intandem.planner.annealing import Warmth, anneal
from intandem.planner.builtin import peaks, rows_of
from intandem.planner.clock import fits, run_rows
from intandem.planner.construction import list_rows, refilled_rows, smallest_caps
from intandem.planner.pattern import unroll
from intandem.planner.problem import Problem
from intandem.planner.request import Request
from intandem.planner.starting import rule_sets
from intandem.simulator import simulate

PLACEMENTS = [Placement.loop(3), Placement.vee(3), Placement.loop(2, 3), Placement((0, 1, 1, 0, 2))]


def problem_of(placement, *, cap_bytes=None, objective="global", split=True, microbatches=5):
    """Unequal stages with latency and bytes."""
    costs = uneven(placement.num_stages, placement.num_stages)
    costs = replace(costs, bandwidth_bytes_per_s=10.0)  # messages wait for one another
    request = Request(
        costs,
        placement.num_ranks,
        microbatches,
        cap_bytes=cap_bytes,
        placement=placement,
        objective=objective,
        split_backward=split,
    )
    return Problem(request.layouts()[0])


def schedule_of(problem, rows):
    """Rows as a schedule."""
    layout = problem.layout
    return Schedule("rows", layout.placement, layout.num_microbatches, problem.actions(rows))


def listed(problem, count):
    """Rows by the first and by drawn rules."""
    return [
        list_rows(problem, r) for r in itertools.islice(rule_sets(problem, random.Random(1)), count)
    ]


@pytest.mark.parametrize("objective", ["global", "rank"])
@pytest.mark.parametrize("placement", PLACEMENTS, ids=str)
def test_a_limit_gives_up_only_what_is_over_it(placement, objective):
    """Rows that take as long as the limit run to their end, with the same times."""
    problem = problem_of(placement, objective=objective)
    given_up = 0
    for rows in listed(problem, 30):
        run = run_rows(problem, rows)
        assert run_rows(problem, rows, run.value_s) == run
        shorter = run_rows(problem, rows, 0.98 * run.value_s)
        assert shorter in (None, run)
        given_up += shorter is None
    assert given_up


@pytest.mark.parametrize("objective", ["global", "rank"])
@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("placement", PLACEMENTS, ids=str)
def test_times_of_the_simulator(placement, split, objective):
    """Both objectives, links that carry one message at a time."""
    problem = problem_of(placement, objective=objective, split=split)
    for rows in listed(problem, 30):
        timeline = simulate(schedule_of(problem, rows), problem.layout.costs)
        value_s = timeline.makespan_s if objective == "global" else timeline.rank_span_s
        assert run_rows(problem, rows).value_s == pytest.approx(value_s, rel=1e-12)
        assert rows_of(problem, schedule_of(problem, rows)) == rows


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("placement", PLACEMENTS, ids=str)
def test_tight_caps_hold_and_end(placement, split):
    """With the smallest caps there are, rows are complete and fit, annealed or not."""
    free = problem_of(placement, cap_bytes=10**6, split=split)
    caps = tuple(smallest_caps(free.layout))
    problem = problem_of(placement, cap_bytes=caps, split=split)
    for rows in listed(problem, 30):
        assert sum(map(len, rows)) == problem.num_operations
        assert_within(problem, rows, caps)
    start = list_rows(problem, next(rule_sets(problem, random.Random(0))))
    found = anneal(problem, start, Warmth(2000, 1.0, 0.05), random.Random(0), 0.0)
    assert_within(problem, found.rows, caps)
    assert found.value_s <= run_rows(problem, start).value_s


def assert_within(problem, rows, caps):
    """Peaks are as another count has them, and within the caps."""
    memory = problem.layout.memory
    held = peaks(schedule_of(problem, rows), memory)
    assert all(map(int.__le__, held, caps))
    assert all(fits(problem, row, most) for row, most in zip(rows, held, strict=True))
    assert not any(fits(problem, row, most - 1) for row, most in zip(rows, held, strict=True))


def test_weight_gradients_put_anew():
    """Forwards and backwards keep their order."""
    problem = problem_of(Placement.vee(3))
    half = 2 * problem.num_stages * problem.num_microbatches
    rules = next(rule_sets(problem, random.Random(0)))
    for rows in listed(problem, 10):
        again = refilled_rows(problem, rows, rules)
        kept = [[o for o in row if o < half] for row in rows]
        assert [[o for o in row if o < half] for row in again] == kept
        assert run_rows(problem, again) is not None


def test_unrolled_rows_keep_the_peak():
    """Twelve micro-batches more, and no rank holds more."""
    small = problem_of(Placement.loop(3), cap_bytes=450, microbatches=10)
    large = Problem(replace(small.layout, num_microbatches=22))
    tried = 0
    for rows in listed(small, 10):
        for longer in unroll(small, rows, large, (1, 2, 3)):
            if run_rows(large, longer) is None:
                continue
            tried += 1
            assert sum(map(len, longer)) == large.num_operations
            held = peaks(schedule_of(large, longer), large.layout.memory)
            assert all(map(int.__le__, held, peaks(schedule_of(small, rows), small.layout.memory)))
    assert tried > 10
