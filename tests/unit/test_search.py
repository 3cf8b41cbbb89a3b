"""The search for schedules: valid, within the cap, never behind the built-in ones, repeatable."""

import random

import pytest

import intandem as it
from intandem.costs import CostModel
from intandem.errors import ScheduleError
from intandem.ir import Placement
from intandem.rules import check
from intandem.simulator import peak_activations, simulate


def uneven(num_stages, seed, *, with_bytes=True):
    """Costs of unequal stages and transfers that take latency and bytes."""
    draw = random.Random(seed)
    seconds = [tuple(draw.uniform(0.7, 1.3) for _ in range(num_stages)) for _ in "FIW"]
    kept = tuple(draw.randrange(50, 150) for _ in range(num_stages))
    return CostModel(
        *seconds,
        latency_s=0.05,
        bandwidth_bytes_per_s=100.0,
        boundary_bytes=(10 if with_bytes else 0,) * (num_stages - 1),
        activation_bytes=kept,
        pending_bytes=tuple(k // 2 for k in kept),
    )


def assert_as_simulated(found, costs):
    """What is returned agrees with the simulator."""
    timeline = simulate(found.schedule, costs)
    assert found.makespan_s == pytest.approx(timeline.makespan_s, rel=1e-12)
    assert found.rank_span_s == pytest.approx(timeline.rank_span_s, rel=1e-12)
    assert found.peak_activations == peak_activations(found.schedule)
    assert found.lower_bound_s <= found.value_s * (1 + 1e-9)


@pytest.mark.parametrize("objective", ["global", "rank"])
@pytest.mark.parametrize("split", [True, False, None])
@pytest.mark.parametrize("stages_per_rank", [1, 2])
def test_valid_within_the_cap_and_as_simulated(stages_per_rank, split, objective):
    """The figures are those of the simulator, and the cap holds."""
    costs = uneven(3 * stages_per_rank, 1)
    cap = 3 * stages_per_rank

    found = it.search(
        costs,
        num_ranks=3,
        num_microbatches=6,
        memory_cap=cap,
        objective=objective,
        split_backward=split,
        effort=0.02,
        solver="none",
    )

    assert check(found.schedule, max_activations=cap) == ()
    assert_as_simulated(found, costs)
    kinds = {a.kind for row in found.schedule.actions for a in row}
    allowed = {True: {*"FIW"}, False: {*"FB"}, None: {*"FIWB"}}
    assert kinds <= allowed[split]


def test_repeatable():
    """The same arguments give the same schedule, another seed may not."""
    costs = uneven(4, 2)
    asked = {"num_ranks": 4, "num_microbatches": 6, "memory_cap": 3, "effort": 0.05}

    first = it.search(costs, solver="none", **asked)

    assert first == it.search(costs, solver="none", **asked)


def test_refuses_what_cannot_fit():
    """The message has the smallest cap that would do."""
    with pytest.raises(ScheduleError, match="the smallest feasible cap is 2 stage activations"):
        it.search(CostModel.uniform(4), num_ranks=2, num_microbatches=4, memory_cap=1)


def test_zero_bubble_is_found_and_proven():
    """P=4, M=8, unit times: 27 is the optimum, and the bound proves it."""
    found = it.search(CostModel.uniform(4), num_ranks=4, num_microbatches=8, solver="none")

    assert found.makespan_s == 27
    assert found.proven


def test_the_placement_that_is_asked_for():
    """A given placement is kept."""
    found = it.search(
        uneven(4, 3),
        num_ranks=2,
        num_microbatches=4,
        placement=Placement((0, 1, 1, 0)),
        effort=0.01,
        solver="none",
    )

    assert found.schedule.placement == Placement((0, 1, 1, 0))
