"""How good what is searched for is: against proven optima, public schedulers, built-ins, bounds."""

import random
import sys
from dataclasses import replace

import pytest
from search_cases import CASES, costs_of, found_for, placement_of, public_cases
from test_search import assert_as_simulated, uneven

import intandem as it
from intandem.planner.builtin import Wanted, builtin_schedules, peaks
from intandem.planner.problem import Memory
from intandem.simulator import simulate

OPTIMAL = CASES["optimal"]
SMALL = [case for case in OPTIMAL if case["p"] * case["m"] <= 12][::4]


def gap(case, **asked):
    """Share by which the result is longer than the proven optimum."""
    found = found_for(case, **asked)
    assert_within(found, case)
    return found.value_s / case["best"] - 1


def assert_within(found, case):
    """It is what the simulator says, and no rank holds more than the cap."""
    costs = costs_of(case, found.schedule.num_stages)
    assert_as_simulated(found, costs)
    memory = Memory(costs.activation_bytes, (0,) * costs.num_stages, costs.pending_bytes)
    assert max(peaks(found.schedule, memory)) <= case["mem_limit"]


@pytest.mark.parametrize("placement", ["single", "v", "loop2"])
def test_near_proven_optima(placement):
    """A slice of the small cases: 0.5% on average, none above 3%."""
    gaps = [gap(case, effort=0.1) for case in SMALL if case["placement"] == placement]

    assert gaps
    assert min(gaps) >= 0
    assert sum(gaps) / len(gaps) <= 0.005
    assert max(gaps) <= 0.03


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("slice_", range(16))
def test_near_all_proven_optima(slice_):
    """The whole list, a sixteenth at a time."""
    gaps = [gap(case) for case in OPTIMAL[slice_::16]]

    assert min(gaps) >= -1e-12
    assert sum(gaps) / len(gaps) <= 0.005
    assert max(gaps) <= 0.03


def assert_no_longer(case, effort):
    """Both objectives, against the public scheduler's value in the same memory."""
    values = {"global": case.get("makespan"), "rank": case.get("longest_stage")}
    for objective, value in values.items():
        found = found_for(case, objective=objective, effort=effort)
        assert_within(found, case)
        assert value is None or found.value_s <= value * (1 + 1e-12)


@pytest.mark.parametrize("case", [c for c in public_cases() if c["p"] * c["m"] <= 24][::5], ids=str)
def test_never_longer_than_a_public_scheduler(case):
    """Small cases; feasible also where the public one finds nothing."""
    assert_no_longer(case, effort=0.2)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("slice_", range(24))
def test_never_longer_than_any_public_scheduler(slice_):
    """The whole list, a part at a time."""
    for case in public_cases()[slice_::24]:
        assert_no_longer(case, effort=0.5)


GRID = [
    (num_ranks, stages_per_rank, num_microbatches, share)
    for num_ranks in (2, 4)
    for stages_per_rank in (1, 2)
    for num_microbatches in (num_ranks, 2 * num_ranks + 1)
    for share in (0.5, 1.0)
]


@pytest.mark.parametrize(("num_ranks", "stages_per_rank", "num_microbatches", "share"), GRID)
def test_never_longer_than_a_built_in(num_ranks, stages_per_rank, num_microbatches, share):
    """Unequal stages, latency and bytes: every built-in of one copy that fits is met or beaten."""
    assert_beats_builtins(num_ranks, stages_per_rank, num_microbatches, share)


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [3, 6, 8])
@pytest.mark.parametrize("stages_per_rank", [1, 2, 4])
@pytest.mark.parametrize("factor", [1, 3])
@pytest.mark.parametrize("share", [0.5, 1.0, 1.5])
def test_never_longer_than_a_built_in_on_a_wider_grid(num_ranks, stages_per_rank, factor, share):
    """The same with more ranks, stages and micro-batches."""
    assert_beats_builtins(num_ranks, stages_per_rank, factor * num_ranks, share)


def assert_beats_builtins(num_ranks, stages_per_rank, num_microbatches, share):
    """Under a cap in activations that is ``share`` of a stage's on every rank."""
    num_stages = num_ranks * stages_per_rank
    costs = uneven(num_stages, num_stages * num_microbatches)
    cap = max(stages_per_rank, round(share * num_stages))

    found = it.search(
        costs,
        num_ranks=num_ranks,
        num_microbatches=num_microbatches,
        memory_cap=cap,
        effort=0.02,
        solver="none",
    )

    ones = (1,) * num_stages
    counted = replace(costs, activation_bytes=(), pending_bytes=())
    wanted = Wanted(counted, num_ranks, num_microbatches, (cap,))
    fitting = [
        schedule
        for schedule in builtin_schedules(wanted)
        if schedule.placement.num_replicas == 1
        and max(peaks(schedule, Memory(ones, (0,) * num_stages, ones))) <= cap
    ]
    best_s = min((simulate(s, costs).makespan_s for s in fitting), default=sys.float_info.max)
    assert max(found.peak_activations) <= cap
    assert found.makespan_s <= best_s * (1 + 1e-9)


NEAR = [(2, 1, 2), (2, 2, 2), (4, 1, 2), (4, 2, 3), (8, 1, 2)]
WIDER = [
    (num_ranks, stages_per_rank, factor)
    for num_ranks in (2, 3, 4, 6, 8)
    for stages_per_rank in (1, 2)
    for factor in (2, 4)
]


@pytest.mark.parametrize(("num_ranks", "stages_per_rank", "factor"), NEAR)
def test_near_the_bound_without_a_cap(num_ranks, stages_per_rank, factor):
    """With at least 2 P micro-batches and room: within 2% of what nothing can be below."""
    assert gap_to_bound(num_ranks, stages_per_rank, factor, effort=0.1) <= 0.02


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("num_ranks", "stages_per_rank", "factor"), WIDER)
def test_near_the_bound_on_a_wider_grid(num_ranks, stages_per_rank, factor):
    """The same for more ranks and several draws of costs."""
    for seed in range(3):
        assert gap_to_bound(num_ranks, stages_per_rank, factor, seed=seed, effort=1) <= 0.02


def gap_to_bound(num_ranks, stages_per_rank, factor, *, effort, seed=0):
    """Share by which a result without a cap is longer than the bound that is printed beside it."""
    costs = uneven(num_ranks * stages_per_rank, seed)
    num_microbatches = factor * num_ranks
    found = it.search(
        costs,
        num_ranks=num_ranks,
        num_microbatches=num_microbatches,
        effort=effort,
        solver="none",
    )
    return found.makespan_s / found.lower_bound_s - 1


def test_of_many_microbatches():
    """A pattern of fewer micro-batches is unrolled, and is as good as the simulator says."""
    costs = uneven(8, 5)

    found = it.search(costs, num_ranks=8, num_microbatches=480, effort=0.02, memory_cap=12)

    assert max(found.peak_activations) <= 12
    assert_as_simulated(found, costs)
    assert "unrolled" in found.method


def test_solver_improves_and_proves():
    """CP-SAT reaches the optimum of capped cases and says so."""
    pytest.importorskip("ortools")
    draw = random.Random(0)
    cases = [c for c in OPTIMAL if c["p"] * c["m"] <= 9 and c["placement"] == "single"]
    for case in draw.sample(cases, 5):
        found = found_for(case, effort=0.02, solver="cp-sat")
        assert_within(found, case)
        assert not found.proven or found.value_s == case["best"]
        assert found.lower_bound_s <= case["best"]


def test_solver_that_is_not_there(monkeypatch):
    """The message says how to install it."""
    monkeypatch.setattr("intandem.planner.exact.is_installed", lambda: False)

    with pytest.raises(ModuleNotFoundError, match=r"pip install 'intandem\[solve\]'"):
        found_for(SMALL[0], effort=0.01, solver="cp-sat")


def test_placement_of_cases():
    """A stage per rank, a V, and two rounds."""
    assert placement_of({"placement": "v", "p": 2}).rank_of == (0, 1, 1, 0)
    assert placement_of({"placement": "loop2", "p": 2}).rank_of == (0, 1, 0, 1)
