"""Schedules with split backwards: closed forms, memory, unequal costs."""

from dataclasses import replace
from itertools import product

import pytest

from intandem.costs import CostModel
from intandem.errors import ScheduleError
from intandem.ir import ActionKind, Placement
from intandem.rules import verify
from intandem.schedules import build_schedule, v_rounds, zb_auto
from intandem.schedules.setting import setting_within
from intandem.simulator import peak_activations, simulate

GRID = [*product((1, 2, 3, 4, 7), (1, 2, 3, 4, 5, 8, 13, 17))]
TIMES = [(1.0, 1.0, 1.0), (2.0, 3.0, 1.0), (3.0, 3.0, 2.0), (1.0, 1.0, 2.0), (4.0, 4.0, 1.0)]
FOR_COSTS = ["zb-1p", "zb-2p", "zb-v", "v-half", "v-min"]
SPLIT = ["zb-h1", "zb-h2", "interleaved-zb", *FOR_COSTS]


def build(name, p, m, **more):
    return build_schedule(name, num_ranks=p, num_microbatches=m, **more)


def timed(name, p, m, times=(1.0, 1.0, 1.0), **more):
    schedule = build(name, p, m, **more)
    return simulate(schedule, CostModel.uniform(schedule.num_stages, *times))


def num_stages(name, p):
    return p if name in {"zb-1p", "zb-2p"} else 2 * p


def unequal(stages, latency_s=0.3, **more):
    """Costs that differ between stages by up to a factor of three, and links with a bandwidth."""
    return CostModel(
        forward_s=tuple(1.0 + 0.3 * (7 * s % 5) for s in range(stages)),
        backward_input_s=tuple(1.0 + 0.2 * (5 * s % 7) for s in range(stages)),
        backward_weight_s=tuple(0.5 + 0.4 * (3 * s % 4) for s in range(stages)),
        latency_s=latency_s,
        bandwidth_bytes_per_s=10.0,
        boundary_bytes=tuple(1 + s % 3 for s in range(stages - 1)),
        **more,
    )


def peak_bytes(schedule, costs):
    """Bytes that the fullest moment of each rank takes, by its order alone."""
    peaks = []
    for row in schedule.actions:
        held = peak = 0
        for action in row:
            taken, kept = costs.activation_bytes[action.stage], costs.pending_bytes[action.stage]
            if action.kind is ActionKind.F:
                held += taken
            elif action.kind is ActionKind.I:
                held += kept - taken
            peak = max(peak, held)
            if action.kind is ActionKind.W:
                held -= kept
        peaks.append(peak)
    return peaks


@pytest.mark.parametrize("name", SPLIT)
def test_every_backward_is_split(name):
    """There is an I and a W for each F, and no B."""
    for p, m in GRID:
        schedule = build(name, p, m)
        kinds = [action.kind for row in schedule.actions for action in row]

        assert kinds.count(ActionKind.B) == 0
        assert {kinds.count(kind) for kind in "FIW"} == {m * schedule.num_stages}


@pytest.mark.parametrize("times", TIMES)
def test_zb_h1_idles_for_what_w_leaves(times):
    """(P-1)(F+I-W), longest rank and flush, with as many micro-batches as ranks and W <= I."""
    f, i, w = times
    for p, m in GRID:
        timeline = timed("zb-h1", p, m, times)
        idle_s = (p - 1) * (f + i) - min(m - 1, p - 1) * w
        if w <= i:
            assert timeline.makespan_s == pytest.approx(m * sum(times) + idle_s)
            assert timeline.rank_span_s == pytest.approx(timeline.makespan_s)


def test_zb_h1_idles_a_third_of_1f1b_at_its_memory():
    """With equal F, I and W; the fullest rank holds what 1F1B's does."""
    for p, m in GRID:
        if m >= p:
            split, whole = (timed(name, p, m) for name in ("zb-h1", "1f1b"))

            assert 3 * (split.makespan_s - 3 * m) == pytest.approx(whole.makespan_s - 3 * m)
        peaks = [max(peak_activations(build(name, p, m))) for name in ("zb-h1", "1f1b")]
        assert peaks[0] == peaks[1] == min(p, m)


@pytest.mark.parametrize("times", TIMES)
def test_zb_h2_idles_for_what_two_ws_leave(times):
    """(P-1)(F+I-2W) on the longest rank; under a flush (P-1)F at the least."""
    f, i, w = times
    for p, m in GRID:
        if m >= 2 * p - 1:
            timeline = timed("zb-h2", p, m, times)
            work_s, left_s = m * (f + i + w), f + i - 2 * w

            assert timeline.rank_span_s == pytest.approx(work_s + (p - 1) * max(left_s, 0))
            assert timeline.makespan_s == pytest.approx(work_s + (p - 1) * max(left_s, f))


def test_zb_h2_holds_2p_less_one():
    """On every rank; fewer with few micro-batches."""
    for p, m in GRID:
        assert set(peak_activations(build("zb-h2", p, m))) == {min(m, 2 * p - 1)}


@pytest.mark.parametrize("times", [times for times in TIMES if times[2] <= times[1]])
def test_interleaved_zb_idles_for_what_two_ws_leave(times):
    """(P-1)(F+I-2W) with F, I, W of one stage, in the memory of the interleaved schedule."""
    f, i, w = times
    for p, v, m in product((1, 2, 3, 4), (1, 2, 3), (1, 2, 3, 4, 6, 8, 9, 13)):
        schedule = build("interleaved-zb", p, m, stages_per_rank=v)
        whole = build("interleaved", p, m, stages_per_rank=v)
        timeline = simulate(schedule, CostModel.uniform(p * v, f, i, w))

        assert max(peak_activations(schedule)) == max(peak_activations(whole))
        if m >= 2 * p:
            idle_s = (p - 1) * max(f + i - 2 * w, 0)
            assert timeline.rank_span_s == pytest.approx(m * v * (f + i + w) + idle_s)


@pytest.mark.parametrize(("name", "handcrafted"), [("zb-1p", "zb-h1"), ("zb-2p", "zb-h2")])
@pytest.mark.parametrize("times", TIMES)
def test_automatic_is_not_longer_than_handcrafted(name, handcrafted, times):
    """For the same memory, or one activation more; with as many micro-batches as warm-up takes."""
    for p, m in GRID:
        if m >= 2 * p:
            costs = CostModel.uniform(p, *times)
            made = simulate(build(name, p, m, costs=costs), costs)

            assert made.rank_span_s <= timed(handcrafted, p, m, times).rank_span_s + 1e-9


def test_zb_2p_and_zb_v_have_no_bubble_per_rank():
    """With equal times and M >= 2P, the longest rank only works; under a flush it cannot."""
    for p, m in GRID:
        if m >= 2 * p:
            assert timed("zb-2p", p, m).rank_span_s == pytest.approx(3 * m)
            assert timed("zb-v", p, m).rank_span_s == pytest.approx(6 * m)
            assert timed("zb-v", p, m).makespan_s >= 6 * m + p - 1


def test_v_schedules_at_four_ranks_and_eight_microbatches():
    """Slots and activations of the three V schedules: less memory, more bubble."""
    found = {name: timed(name, 4, 8).makespan_s for name in ("v-min", "v-half", "zb-v")}
    held = {name: max(peak_activations(build(name, 4, 8))) for name in found}

    assert found == {"v-min": 59.0, "v-half": 53.0, "zb-v": 51.0}
    assert held == {"v-min": 4, "v-half": 6, "zb-v": 8}


def test_v_half_and_v_min_in_closed_form():
    """Peaks 2 floor((P+2)/2) and 2 floor((P+4)/3); 6M + 6P - 1 - 3k slots, V-Min up to 3 more."""
    for p, m in product(range(3, 10), (3, 5, 9, 14, 20)):
        if m >= p:
            half, least = 2 * ((p + 2) // 2), 2 * ((p + 4) // 3)

            assert max(peak_activations(build("v-half", p, m))) == half
            assert max(peak_activations(build("v-min", p, m))) == least
            assert timed("v-half", p, m).makespan_s == 6 * m + 6 * p - 1 - 3 * half
            assert 0 <= timed("v-min", p, m).makespan_s - (6 * m + 6 * p - 1 - 3 * least) <= 3


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("zb-1p", lambda p: p),
        ("zb-2p", lambda p: 2 * p),
        ("zb-v", lambda p: 2 * p),
        ("v-half", lambda p: p + 2),
        ("v-min", lambda p: 2 * ((p + 4) // 3)),
    ],
)
def test_cap_holds_for_unequal_stages(name, most):
    """Stages that differ, latency and bandwidth: valid, and never more than the cap."""
    for p, m in [(1, 1), (2, 3), (3, 2), (4, 5)]:
        schedule = build(name, p, m, costs=unequal(num_stages(name, p)))

        verify(schedule)
        assert max(peak_activations(schedule)) <= max(most(p), 2)


@pytest.mark.parametrize("name", ["zb-1p", "zb-2p"])
def test_every_size_with_unequal_stages_verifies(name):
    """All P to 8 and M to 17."""
    for p, m in product(range(1, 9), range(1, 18)):
        verify(build(name, p, m, costs=unequal(p)))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["zb-v", "v-half", "v-min"])
def test_v_of_every_size_with_unequal_stages_verifies(name):
    """All P to 8, and M below and above."""
    for p, m in product(range(1, 9), (1, 2, 4, 7, 11, 17)):
        verify(build(name, p, m, costs=unequal(2 * p)))


@pytest.mark.parametrize(("name", "least", "sizes"), [("zb-1p", 1, (2, 3, 4)), ("zb-v", 2, (2, 3))])
def test_any_cap_is_kept(name, least, sizes):
    """From the least that a micro-batch needs, in activations of a stage."""
    for p, m, cap in product(sizes, (1, 4), (least, 3, 5)):
        schedule = build(name, p, m, max_activations=cap)

        verify(schedule)
        assert max(peak_activations(schedule)) <= cap


@pytest.mark.parametrize("name", ["zb-1p", "zb-v"])
def test_memory_counts_in_bytes_where_costs_have_them(name):
    """A cap in activations is bytes of the rank's own stages; what I frees can be used."""
    for p, m in [(2, 5), (3, 4)]:
        stages = num_stages(name, p)
        sizes = tuple(10 + 3 * (s % p) for s in range(stages))
        costs = unequal(
            stages, activation_bytes=sizes, pending_bytes=tuple(size // 2 for size in sizes)
        )
        schedule = build(name, p, m, costs=costs)

        verify(schedule)
        for rank, peak in enumerate(peak_bytes(schedule, costs)):
            own = [sizes[stage] for stage in schedule.placement.stages_of(rank)]
            assert peak <= stages * sum(own) / len(own)


@pytest.mark.parametrize("name", FOR_COSTS)
def test_costs_of_another_number_of_stages_are_refused(name):
    """The message has both numbers."""
    with pytest.raises(ValueError, match=r"costs of 3 stages for [48] stages"):
        build(name, 4, 4, costs=unequal(3))


@pytest.mark.parametrize(
    ("builder", "placement"), [(zb_auto, Placement.loop(4)), (v_rounds, Placement.vee(3))]
)
def test_builders_keep_the_simulators_time(builder, placement):
    """What they decide by is what happens: unequal stages, latency, links that are busy."""
    costs = unequal(placement.num_stages, latency_s=0.2)
    costs = replace(costs, bandwidth_bytes_per_s=1.0)
    for m in (1, 4, 9):
        clock = builder.best_clock(setting_within(placement, m, costs, 2 * placement.num_ranks))
        timeline = simulate(clock.schedule("timed"), costs)

        assert clock.makespan_s() == pytest.approx(timeline.makespan_s)
        assert clock.rank_span_s() == pytest.approx(timeline.rank_span_s)


def test_v_needs_room_for_both_stages():
    """One stage activation is not enough for a micro-batch to come back."""
    with pytest.raises(
        ScheduleError, match="an activation of each of its two stages, so use 2 or more"
    ):
        build("zb-v", 3, 4, max_activations=1)
    with pytest.raises(ValueError, match="max_activations=0; expected at least 1"):
        build("zb-1p", 3, 4, max_activations=0)


def test_unequal_costs_are_used():
    """Made for the costs, schedules are shorter than those for equal times run at the costs."""
    for name in FOR_COSTS:
        costs = unequal(num_stages(name, 4))
        blind = simulate(build(name, 4, 8), costs)

        made = simulate(build(name, 4, 8, costs=costs), costs)

        assert made.rank_span_s < blind.rank_span_s


@pytest.mark.parametrize("name", ["v-half", "v-min"])
def test_v_schedules_of_stages_of_unequal_size(name):
    """What a block itself takes is allowed, even where it is more than as many mean activations."""
    for p, m in ((2, 2), (4, 4), (4, 9), (3, 7)):
        sizes = tuple(1 + (5 * stage) % 7 for stage in range(2 * p))
        ones = tuple(1.0 + 0.1 * (stage % 3) for stage in range(2 * p))
        costs = CostModel(ones, ones, ones, activation_bytes=sizes, latency_s=0.1)

        verify(build_schedule(name, num_ranks=p, num_microbatches=m, costs=costs))


@pytest.mark.parametrize("name", ["zb-1p", "zb-2p", "zb-v"])
@pytest.mark.parametrize("cap", [2, 4, 6])
def test_a_cap_counts_activations(name, cap):
    """Whatever I frees in bytes: what is asked for is what ``verify`` counts."""
    num_stages = 8 if name == "zb-v" else 4
    costs = CostModel(
        tuple(1 + s % 3 / 2 for s in range(num_stages)), (1.0,) * num_stages, (1.0,) * num_stages,
        activation_bytes=(10,) * num_stages, pending_bytes=(5,) * num_stages,
    )  # fmt: skip
    schedule = build_schedule(
        name, num_ranks=4, num_microbatches=8, costs=costs, max_activations=cap
    )

    verify(schedule, max_activations=cap)
