"""The search for schedules: valid, within the cap, never behind the built-in ones, repeatable."""

import random

import pytest

import intandem as it
from intandem.costs import CostModel
from intandem.errors import ScheduleError
from intandem.ir import Placement
from intandem.lowering import lower
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


def test_caps_per_rank():
    """Every rank has its own."""
    caps = (4, 2, 1)

    found = it.search(
        uneven(3, 4),
        num_ranks=3,
        num_microbatches=6,
        memory_cap=caps,
        effort=0.02,
        solver="none",
    )

    assert all(map(int.__le__, found.peak_activations, caps))


def test_caps_in_bytes():
    """What I leaves for W counts as that, from the end of I to the end of W."""
    costs = uneven(4, 6)
    need = max(costs.activation_bytes)

    found = it.search(
        costs,
        num_ranks=4,
        num_microbatches=6,
        memory_cap_bytes=2 * need,
        effort=0.02,
        solver="none",
    )

    assert max(found.peak_held_bytes) <= 2 * need
    assert_as_simulated(found, costs)


def test_recomputation_fits_where_nothing_else_does():
    """Stages that run again keep their input alone; the time of it is counted."""
    costs = CostModel(
        (1.0,) * 2, (1.0,) * 2, (1.0,) * 2, boundary_bytes=(1,), activation_bytes=(10, 10)
    )
    asked = {"num_ranks": 2, "num_microbatches": 4, "memory_cap_bytes": 12, "effort": 0.02}

    kept = it.search(costs, solver="none", **asked)
    again = it.search(costs, solver="none", recompute=True, **asked)

    assert not kept.recompute
    assert max(again.peak_held_bytes) <= 12
    assert again.makespan_s < kept.makespan_s
    program = lower(again.schedule, recompute=again.recompute)
    assert simulate(program, costs).makespan_s == again.makespan_s


def test_progress_falls():
    """Each time it is told, the value is lower; the last one is the result's."""
    told = []

    found = it.search(
        uneven(3, 5),
        num_ranks=3,
        num_microbatches=6,
        effort=0.05,
        solver="none",
        on_progress=told.append,
    )

    values = [progress.value_s for progress in told]
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(found.makespan_s)
    assert all(0 <= progress.share <= 1 for progress in told)


def test_two_copies_of_the_weights():
    """Two-way schedules compete only where they are asked for."""
    asked = {"num_ranks": 4, "num_microbatches": 8, "effort": 0.02, "solver": "none"}

    one = it.search(CostModel.uniform(4), **asked)
    two = it.search(CostModel.uniform(4), weight_copies=2, **asked)

    assert one.schedule.placement.num_replicas == 1
    assert two.makespan_s <= one.makespan_s
    assert two.lower_bound_s <= two.makespan_s


def test_an_effort_that_leaves_no_moves():
    """What it starts from is returned."""
    found = it.search(uneven(8, 0), num_ranks=4, num_microbatches=8, effort=1e-6, solver="none")

    assert found.makespan_s >= found.lower_bound_s


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"num_ranks": 3}, "4 stages on 3 ranks"),
        ({"num_ranks": 2, "memory_cap": 4, "memory_cap_bytes": 4}, "both given"),
        ({"num_ranks": 2, "memory_cap_bytes": 4}, "needs activation_bytes"),
        ({"num_ranks": 2, "memory_cap": (4, 4, 4)}, "has 3 numbers"),
        ({"num_ranks": 2, "objective": "both"}, "objective is 'both'"),
        ({"num_ranks": 2, "placement": Placement.bidirectional(4)}, "has replicas"),
        ({"num_ranks": 2, "placement": Placement.loop(4)}, "4 stages on 4 ranks"),
        ({"num_ranks": 0}, "num_ranks=0"),
        ({"num_ranks": 2, "weight_copies": 0}, "weight_copies is 0"),
        ({"num_ranks": 2, "effort": 0}, "effort is 0"),
        ({"num_ranks": 2, "effort": float("nan")}, "effort is nan"),
        ({"num_ranks": 2, "time_limit_s": -1.0}, "time_limit_s is -1"),
        ({"num_ranks": 2, "solver": "best"}, "solver is 'best'"),
    ],
)
def test_refuses_what_does_not_go_together(asked, message):
    """The message has the values."""
    with pytest.raises(ValueError, match=message):
        it.search(CostModel.uniform(4), num_microbatches=4, **asked)
