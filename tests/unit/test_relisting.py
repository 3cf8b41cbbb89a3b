"""Rows that are listed again, from the end and from the beginning."""

import pytest
from search_cases import costs_of
from test_search import uneven

from intandem.ir import Placement
from intandem.planner.builtin import rows_of
from intandem.planner.problem import Layout, Memory, Problem
from intandem.planner.relisting import relisted
from intandem.planner.trial import measured
from intandem.schedules.registry import build_schedule

LOOP, VEE = Placement.loop(4), Placement.vee(4)
SCHEDULES = [("gpipe", LOOP, False), ("1f1b", LOOP, False), ("zb-h2", LOOP, True)]
SCHEDULES += [("zb-v", VEE, True), ("v-half", VEE, True), ("v-min", VEE, True)]


def problem_of(costs, placement, num_microbatches, *, split, cap=None):
    """Count memory in stage activations."""
    ones = (1,) * placement.num_stages
    memory = Memory(ones, (0,) * placement.num_stages, ones)
    caps = None if cap is None else (cap,) * placement.num_ranks
    return Problem(Layout(costs, placement, num_microbatches, split, "global", memory, caps))


@pytest.mark.parametrize(("name", "placement", "split"), SCHEDULES)
@pytest.mark.parametrize("patience", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("from_end", [True, False])
def test_same_operations_within_the_same_memory(name, placement, split, patience, from_end):
    """Whatever the costs, they run, fit where the old rows just fit, and are the same ones."""
    schedule = build_schedule(name, num_ranks=4, num_microbatches=7)
    for seed in range(5):
        costs = uneven(placement.num_stages, seed)
        rows = rows_of(problem_of(costs, placement, 7, split=split), schedule)
        cap = next(
            cap
            for cap in range(2, 99)
            if measured(problem_of(costs, placement, 7, split=split, cap=cap), rows)
        )
        problem = problem_of(costs, placement, 7, split=split, cap=cap)

        again = relisted(problem, rows, patience, from_end=from_end)

        assert list(map(sorted, again)) == list(map(sorted, rows))
        assert measured(problem, again) is not None


def test_the_end_is_brought_forward():
    """V-Half where messages take a tenth of an operation: its end waits less, its middle more."""
    case = {"TF": 100, "TB": 100, "TW": 100, "Tc": 10, "mem_f": 1, "mem_w": -1}
    placement = Placement.vee(8)
    problem = problem_of(costs_of(case, 16), placement, 16, split=True, cap=10)
    rows = rows_of(problem, build_schedule("v-half", num_ranks=8, num_microbatches=16))
    values_s = [measured(problem, rows).value_s]
    for from_end in (True, False):
        rows = relisted(problem, rows, 1.0, from_end=from_end)
        values_s.append(measured(problem, rows).value_s)

    assert values_s == [11920, 11880, 11720]
