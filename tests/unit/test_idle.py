"""Where idle time went, and the critical path: of simulated steps, and of steps that were hurt."""

import random
from dataclasses import astuple, replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from order_samples import prog

from intandem.costs import CostModel
from intandem.ir import Arrival, Span, Timeline, handovers
from intandem.ir.analysis import IdleParts
from intandem.lowering import lower
from intandem.schedules import build_schedule
from intandem.simulator import critical_path, idle_parts, simulate

NAMES = ["naive", "gpipe", "1f1b", "zb-h1", "interleaved", "zb-v", "dualpipe-v", "chimera"]


def program(name, num_ranks=4, num_microbatches=8):
    return lower(build_schedule(name, num_ranks=num_ranks, num_microbatches=num_microbatches))


def moved(timeline, order, delays, flights=None):
    """Run ``order`` again with delays before actions, times of messages, and arrivals.

    Args:
        timeline: gives how long actions take.
        order: the program.
        delays: by action's text, seconds between when all is there and its start.
        flights: by message's text, seconds under way.
    """
    length = {s.action: s.end_s - s.start_s for s in timeline.spans}
    needed = {}
    for h in handovers(order):
        needed.setdefault((h.target_rank, h.target), []).append(h)
    ends, spans, arrivals, free = {}, [], [], [0.0] * order.num_ranks
    rows = [list(order.actions(rank)) for rank in range(order.num_ranks)]
    while any(rows):
        for rank, row in enumerate(rows):
            if not row:
                continue
            wanted = needed.get((rank, row[0]), [])
            if any(h.message.source not in ends for h in wanted):
                continue
            action, ready_s = row.pop(0), free[rank]
            for h in wanted:
                there_s = ends[h.message.source] + (flights or {}).get(str(h.message), 0.0)
                ready_s = max(ready_s, there_s)
                arrivals.append(Arrival(rank, h.message, ready_s))
            start_s = ready_s + delays.get(str(action), 0.0)
            ends[action] = free[rank] = start_s + length[action]
            spans.append(Span(rank, action, start_s, free[rank]))
    spans.sort(key=lambda s: (s.rank, s.start_s))
    return Timeline(tuple(spans), order.num_ranks, tuple(arrivals))


def late(num_stages, latency_s):
    return replace(CostModel.uniform(num_stages), latency_s=latency_s)


def idle_of(timeline, rank):
    return timeline.makespan_s - timeline.busy_of_rank_s(rank)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("costs", [(1, 1, 1), (1, 2, 0.5)])
def test_parts_add_up(name, costs):
    """Of every rank, to what is left of the makespan when actions are taken away."""
    order = program(name)
    num_stages = order.placement.num_stages
    uneven = CostModel(
        tuple(costs[0] * (1 + s % 3) for s in range(num_stages)),
        tuple(costs[1] for _ in range(num_stages)),
        tuple(costs[2] * (1 + s % 2) for s in range(num_stages)),
        latency_s=0.25,
    )
    found = simulate(order, uneven)

    for rank, parts in enumerate(idle_parts(found, order)):
        assert parts.total_s == pytest.approx(idle_of(found, rank), abs=1e-9)
        assert min(astuple(parts)) >= 0


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(NAMES[:5]), st.integers(0, 10**6))
def test_parts_add_up_whatever_happens(name, seed):
    """With delays and flights drawn at random, and updates that end at any time."""
    order, rng = program(name, 3, 6), random.Random(seed)
    base = simulate(order, CostModel.uniform(order.placement.num_stages))
    delays = {str(s.action): rng.randrange(20) / 8 for s in base.spans}
    flights = {str(h.message): rng.randrange(20) / 8 for h in handovers(order)}
    found = moved(base, order, delays, flights)
    ends = [max(s.end_s for s in found.of_rank(rank)) for rank in range(3)]
    updates = {rank: (end, end + rng.randrange(20) / 8) for rank, end in enumerate(ends)}

    last_s = max(end for _, end in updates.values())
    for rank, parts in enumerate(idle_parts(found, order, updates)):
        idle_s = max(last_s, found.end_s) - found.start_s - found.busy_of_rank_s(rank)
        assert parts.total_s == pytest.approx(idle_s, abs=1e-9)
        assert min(astuple(parts)) >= -1e-9


@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
def test_alike_stages_leave_fill_and_drain(name):
    """(P - 1) (F + B) on every rank, none of it anyone's fault."""
    order = program(name)

    for parts in idle_parts(*two(order)):
        assert parts.fill_s + parts.drain_s == parts.total_s == 3 * 3


def two(order):
    return simulate(order, CostModel.uniform(order.placement.num_stages)), order


def test_last_rank_fills_and_drains():
    """Fill is what comes before, and drain what comes after."""
    found = idle_parts(*two(program("1f1b")))

    assert found[3] == IdleParts(fill_s=3.0, drain_s=6.0)


def test_waits_of_the_order():
    """One micro-batch at a time makes ranks wait in between, with whatever stages."""
    found = idle_parts(*two(program("naive", 2, 3)))

    assert found[0] == IdleParts(fill_s=3.0, order_s=3.0, drain_s=3.0)
    assert found[1] == IdleParts(fill_s=1.0, order_s=6.0, drain_s=2.0)


def test_imbalance_is_what_a_longer_stage_makes():
    """The other rank waits for it; it does not wait itself."""
    order = program("1f1b", 2, 6)
    found = idle_parts(simulate(order, CostModel((1, 2), (1, 2), (1, 2))), order)

    assert found[0].imbalance_s > 5 * 3 - 3
    assert found[1].imbalance_s == 0
    assert all(p.transfer_s == p.overhead_s == p.knock_on_s == 0 for p in found)


def test_transfers():
    """What a message is under way for, where nothing else keeps the rank."""
    order = program("naive", 2, 3)
    found = idle_parts(simulate(order, late(2, 0.5)), order)

    assert [p.transfer_s for p in found] == [3.0, 3.0]
    assert all(p.imbalance_s == p.knock_on_s == p.overhead_s == 0 for p in found)


def test_a_wait_for_a_rank_that_waits_for_a_message_is_transfer():
    """What two ranks wait for, one through the other, is named alike."""
    order = program("naive", 3, 1)
    found = simulate(order, late(3, 0.5))

    parts = idle_parts(found, order)

    assert [p.transfer_s for p in parts] == [2.0, 2.0, 2.0]


def test_overhead_is_what_comes_between():
    """A delay once everything is there, of the rank's own and of the one it waits for."""
    order = program("naive", 2, 1)
    found = moved(*two(order), {"1F0": 0.25, "0B0": 0.5})

    parts = idle_parts(found, order)

    assert [p.overhead_s for p in parts] == [0.75, 0.75]
    assert [p.transfer_s for p in parts] == [0.0, 0.0]


def test_one_slow_microbatch_is_a_knock_on():
    """Stages are alike on the whole; ranks wait for that micro-batch alone."""
    order = program("1f1b", 2, 16)
    base = simulate(order, CostModel.uniform(2))
    slow = tuple(
        s._replace(end_s=s.end_s + 4.0) if str(s.action) == "1F8" else s for s in base.spans
    )
    found = moved(replace(base, spans=slow), order, {})

    parts = idle_parts(found, order)[0]

    assert (parts.knock_on_s, parts.imbalance_s) == (4.0, 0.0)


def test_updates():
    """Until the last rank has updated, once all actions are over; own ones before that."""
    order = program("gpipe", 2, 2)
    found = simulate(order, CostModel.uniform(2))
    ends = [found.of_rank(rank)[-1].end_s for rank in range(2)]
    updates = {0: (ends[0], ends[0] + 3.0), 1: (ends[1] + 0.5, ends[1] + 1.0)}

    parts = idle_parts(found, order, updates)

    assert parts[0].optimizer_s == 3.0
    assert parts[1].optimizer_s == ends[0] - ends[1] - 0.5 + 3.0
    assert parts[1].drain_s == 0.5


@pytest.mark.parametrize("name", NAMES)
def test_the_path_is_as_long_as_the_step(name):
    """Actions and what is between them, from the start to the end; each after the one before."""
    order = program(name)
    num_stages = order.placement.num_stages
    costs = late(num_stages, 0.25)
    found = simulate(order, costs)

    path = critical_path(found, order)

    length_s = sum(step.gap_s + step.span.end_s - step.span.start_s for step in path)
    assert length_s == pytest.approx(found.makespan_s)
    assert path[0].span.start_s == 0
    for before, step in pairwise(path):
        assert before.span.end_s <= step.span.start_s
        assert step.by_message == (before.span.rank != step.span.rank)
        assert step.gap_s == pytest.approx(0) or step.gap_s == pytest.approx(0.25)


def words(path):
    return " ".join(f"{'>' if step.by_message else ''}{step.span.action}" for step in path)


def test_path_of_a_slow_stage():
    """Goes to it, stays there, and comes back."""
    order = program("gpipe", 3, 3)
    found = simulate(order, CostModel((1, 3, 1), (1, 3, 1), (0, 0, 0)))

    assert words(critical_path(found, order)) == ("0F0 >1F0 1F1 1F2 >2F2 2B0 >1B0 1B1 1B2 >0B2")


def test_a_message_that_lay_about_is_not_on_the_path():
    """Ranks ask for messages when they are free; one that was there long ago kept nobody."""
    order = program("gpipe", 2, 2)
    base = simulate(order, CostModel((1, 5), (1, 1), (0, 0)))
    late = tuple(
        Arrival(h.target_rank, h.message, s.start_s + 0.001)
        for h in handovers(order)
        for s in base.spans
        if s.action == h.target
    )
    spans = tuple(s._replace(start_s=s.start_s + 0.002) for s in base.spans)

    path = critical_path(Timeline(spans, 2, late), order)

    assert words(path) == "0F0 >1F0 1F1 1B0 1B1 >0B1"


def test_nothing_ran():
    """There is no path, and no idle time."""
    order = prog("", "")

    assert critical_path(Timeline((), 2), order) == ()
