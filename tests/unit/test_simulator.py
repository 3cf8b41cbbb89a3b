"""The clock: what starts when, what overlaps, and what is held."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from order_samples import prog, sched, split_backwards, valid_schedules

from intandem.costs import CostModel
from intandem.errors import ScheduleVerifyError
from intandem.ir import Placement, Span, Timeline
from intandem.lowering import lower
from intandem.schedules import build_schedule
from intandem.simulator import activations, lower_bound_s, peak_activations, simulate

GOLDEN = Path(__file__).parent.parent / "golden"


def golden(name):
    return json.loads((GOLDEN / name).read_text())["cases"]


def on_clock(timeline):
    """Each span as text, rank by rank."""
    return [f"{s.rank}: {s.action} {s.start_s:g}-{s.end_s:g}" for s in timeline.spans]


def test_two_ranks_on_the_clock():
    """F takes 1, B takes 2, a transfer 0.5 and no rank's time."""
    timeline = simulate(sched("0F0 0B0", "1F0 1B0"), CostModel.uniform(2, transfer_s=0.5))

    assert on_clock(timeline) == ["0: 0F0 0-1", "0: 0B0 5-7", "1: 1F0 1.5-2.5", "1: 1B0 2.5-4.5"]
    assert timeline.makespan_s == 7.0


def test_a_weight_backward_fills_the_wait():
    """I hands its gradient over before W runs."""
    timeline = simulate(sched("0F0 0I0 0W0", "1F0 1I0 1W0"), CostModel.uniform(2))

    assert timeline.makespan_s == 5.0


def test_bytes_keep_a_link_and_latency_does_not():
    """Two messages of 3 s each on one link queue; their latency of 1 s overlaps."""
    schedule = sched("0F0 0F1 0B0 0B1", "1F0 1F1 1B0 1B1", microbatches=2)
    per_stage = (1.0, 1.0), (1.0, 1.0), (1.0, 1.0)
    costs = CostModel(*per_stage, latency_s=1.0, bandwidth_bytes_per_s=10.0, boundary_bytes=(30,))

    starts = {str(s.action): s.start_s for s in simulate(schedule, costs).spans}

    assert (starts["1F0"], starts["1F1"]) == (5.0, 8.0)


def test_links_of_two_directions_do_not_queue():
    """An activation and a gradient pass one another."""
    costs = CostModel(
        (1.0, 1.0), (1.0, 1.0), (0.0, 0.0), bandwidth_bytes_per_s=1.0, boundary_bytes=(10,)
    )

    assert simulate(sched("0F0 0B0", "1F0 1B0"), costs).makespan_s == 4 + 2 * 10


def test_recomputation_is_part_of_its_backward():
    """It holds the rank as long as a forward, before the backward, and waits for its receives."""
    program = lower(sched("0F0 0B0", "1F0 1B0"), recompute={0})

    timeline = simulate(program, CostModel.uniform(2))

    assert on_clock(timeline) == ["0: 0F0 0-1", "0: 0B0 4-7", "1: 1F0 1-2", "1: 1B0 2-4"]


def test_a_recomputation_may_wait_with_its_rank():
    """One that comes before the receive overlaps the wait, and is not drawn."""
    program = prog(
        "0F0 send:0F0>1@1 recompute:0F0 recv:1B0>0@1 0B0",
        "recv:0F0>1@0 1F0 1B0 send:1B0>0@0",
    )

    assert on_clock(simulate(program, CostModel.uniform(2)))[1] == "0: 0B0 4-6"


def test_a_recomputation_before_anything_else_is_not_drawn():
    """It is part of its own backward only, not of a forward of another micro-batch."""
    program = prog("0F0 recompute:0F0 0F1 0B0 0B1", microbatches=2)

    drawn = on_clock(simulate(program, CostModel.uniform(1)))
    assert drawn == ["0: 0F0 0-1", "0: 0F1 2-3", "0: 0B0 3-5", "0: 0B1 5-7"]


def test_a_held_receive_holds_its_rank():
    """A receive that is not needed yet still waits: where it stands decides."""
    early = prog(
        "0F0 send:0F0>1@1 recv:1B0>0@1 0F1 send:0F1>1@1 0B0 recv:1B1>0@1 0B1",
        "recv:0F0>1@0 1F0 1B0 send:1B0>0@0 recv:0F1>1@0 1F1 1B1 send:1B1>0@0",
        microbatches=2,
    )
    schedule = sched("0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1", microbatches=2)

    costs = CostModel.uniform(2)
    assert simulate(early, costs).makespan_s > simulate(schedule, costs).makespan_s


@given(valid_schedules)
@settings(max_examples=100, deadline=None)
def test_a_rank_does_one_thing_at_a_time(schedule):
    """Spans of a rank follow one another in its order, each as long as it costs."""
    timeline = simulate(schedule, CostModel.uniform(schedule.num_stages, 2.0, 3.0, 4.0))

    for rank, row in enumerate(schedule.actions):
        spans = timeline.of_rank(rank)
        assert tuple(span.action for span in spans) == row
        assert all(a.end_s <= b.start_s for a, b in pairwise(spans))
        length = {"F": 2.0, "I": 3.0, "W": 4.0, "B": 7.0}
        assert all(s.end_s - s.start_s == length[s.action.kind] for s in spans)


def test_refuses_what_is_invalid():
    """Schedules and programs are verified first."""
    with pytest.raises(ScheduleVerifyError, match="S003"):
        simulate(sched("0B0 0F0"), CostModel.uniform(1))
    with pytest.raises(ScheduleVerifyError, match="P002"):
        simulate(prog("0F0 0B0", "1F0 1B0"), CostModel.uniform(2))


def test_refuses_costs_of_another_pipeline():
    """The message has both numbers."""
    with pytest.raises(ValueError, match="costs of 3 stages for 1 stages"):
        simulate(sched("0F0 0B0"), CostModel.uniform(3))


@pytest.mark.parametrize("case", golden("one_f_one_b_makespans.json"), ids=str)
def test_1f1b_is_as_others_simulate_it(case):
    """Makespan, longest rank, bubble and activations of an independent simulation."""
    schedule = build_schedule("1f1b", num_ranks=case["p"], num_microbatches=case["m"])
    costs = CostModel.uniform(case["p"], case["TF"], case["TB"], case["TW"], case["Tc"])

    timeline = simulate(schedule, costs)

    assert timeline.makespan_s == case["makespan"]
    assert timeline.rank_span_s == case["longest_stage"]
    assert timeline.bubble_ratio == pytest.approx(case["bubble_rate_global"], abs=1e-6)
    assert peak_activations(timeline) == tuple(case["peak_mem"])


class TestActivations:
    def test_steps(self):
        """One more at the start of F, one less at the end of B."""
        timeline = simulate(sched("0F0 0F1 0B0 0B1", microbatches=2), CostModel.uniform(1))

        assert activations(timeline) == (((0.0, 1), (1.0, 2), (4.0, 1), (6.0, 0)),)

    def test_split_backward_frees_at_its_end(self):
        """I frees nothing; W does."""
        timeline = simulate(sched("0F0 0I0 0W0"), CostModel.uniform(1))

        assert activations(timeline) == (((0.0, 1), (3.0, 0)),)

    def test_forwards_alone(self):
        """Each keeps nothing when it has ended."""
        timeline = simulate(sched("0F0 0F1", microbatches=2), CostModel.uniform(1))

        assert activations(timeline) == (((0.0, 1), (1.0, 0), (1.0, 1), (2.0, 0)),)
        assert peak_activations(timeline) == (1,)

    @given(valid_schedules)
    @settings(max_examples=50, deadline=None)
    def test_order_and_clock_agree(self, schedule):
        """A rank does one thing at a time, so the peak of its order is the peak in time."""
        timeline = simulate(schedule, CostModel.uniform(schedule.num_stages))

        peaks = tuple(max(count for _, count in steps) for steps in activations(timeline))
        assert peaks == peak_activations(schedule)
        assert peaks == peak_activations(timeline)
        assert peaks == peak_activations(lower(schedule))

    def test_idle_rank(self):
        """A measured timeline may have a rank that did nothing."""
        timeline = Timeline((Span(0, sched("0F0").actions[0][0], 1.0, 2.0),), 2)

        assert activations(timeline) == (((1.0, 1), (2.0, 0)), ())
        assert peak_activations(timeline) == (1, 0)


class TestLowerBound:
    @given(valid_schedules, st.data())
    @settings(max_examples=200, deadline=None)
    def test_is_never_above_a_simulation(self, schedule, data):
        """Any schedule, split or not, any costs, bytes on the links included."""
        num = schedule.num_stages
        seconds = st.lists(st.integers(0, 9).map(float), min_size=num, max_size=num).map(tuple)
        volumes = st.lists(st.integers(0, 9), min_size=num - 1, max_size=num - 1).map(tuple)
        costs = CostModel(
            *(data.draw(seconds) for _ in range(4)),
            latency_s=data.draw(st.integers(0, 3)),
            bandwidth_bytes_per_s=2.0,
            boundary_bytes=data.draw(volumes),
        )

        bound_s = lower_bound_s(costs, schedule.placement, schedule.num_microbatches)

        assert bound_s <= simulate(schedule, costs).makespan_s

    @pytest.mark.parametrize("case", golden("optimal_makespans.json"), ids=str)
    def test_is_never_above_a_proven_optimum(self, case):
        """Nor above what the work alone takes."""
        p = case["p"]
        placement = {
            "single": Placement.loop(p),
            "v": Placement.vee(p),
            "loop2": Placement.loop(p, 2),
        }[case["placement"]]
        times = case["TF"], case["TB"], case["TW"], case["Tc"]
        costs = CostModel.uniform(placement.num_stages, *times)

        bound_s = lower_bound_s(costs, placement, case["m"])

        work_s = case["m"] * sum(times[:3]) * placement.num_stages / p
        assert work_s <= bound_s <= case["best"]

    def test_closed_forms(self):
        """For equal stages: work (P-1)(F+c) + MT and chain (P-1)(F+I+2c) + M(F+I) + W."""
        for p, m, f, i, w, c in [(4, 8, 1, 1, 1, 0), (4, 8, 3, 2, 1, 2), (8, 2, 1, 4, 1, 1)]:
            work_s = (p - 1) * (f + c) + m * (f + i + w)
            chain_s = (p - 1) * (f + i + 2 * c) + m * (f + i) + w

            bound_s = lower_bound_s(CostModel.uniform(p, f, i, w, c), Placement.loop(p), m)

            assert bound_s == max(work_s, chain_s)

    def test_is_reached_by_one_rank(self):
        """Alone, work is all there is."""
        schedule = split_backwards(build_schedule("gpipe", num_ranks=1, num_microbatches=3))

        timeline = simulate(schedule, CostModel.uniform(1))

        assert lower_bound_s(CostModel.uniform(1), schedule.placement, 3) == timeline.makespan_s

    def test_refuses_another_number_of_stages(self):
        """The message has the numbers."""
        with pytest.raises(ValueError, match=r"2 stages costed, 1 placed"):
            lower_bound_s(CostModel.uniform(2), Placement.loop(1), 1)
