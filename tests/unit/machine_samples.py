"""Machines, costs and orders of every kind, drawn: whole seconds, so that sums are exact."""

from dataclasses import replace
from functools import partial
from itertools import pairwise
from operator import add

from hypothesis import assume
from hypothesis import strategies as st
from order_samples import PLACEMENTS, random_valid

from intandem.costs import CostModel
from intandem.ir import ActionKind, Placement
from intandem.machine import Link, Machine
from intandem.rules import check


def small(values):
    return st.sampled_from(values)


@st.composite
def machines(draw, num_ranks):
    links = st.builds(Link, small([0, 1, 3]), small([1.0, 2.0, float("inf")]))
    pairs = [(a, b) for a in range(num_ranks) for b in range(num_ranks) if a != b]
    shared = draw(st.lists(small(pairs), unique=True, max_size=6)) if pairs else []
    cut = draw(st.integers(0, len(shared)))
    return Machine(
        num_ranks,
        draw(links),
        draw(st.dictionaries(small(pairs), links, max_size=3)) if pairs else {},
        (tuple(shared[:cut]), tuple(shared[cut:])),
        transfers_overlap=draw(st.booleans()),
    )


def per_stage(values, num_stages):
    return st.lists(small(values), min_size=num_stages, max_size=num_stages).map(tuple)


def added(first, second):
    return tuple(map(add, first, second))


@st.composite
def costs_of(draw, num_stages):
    seconds = per_stage([0, 1, 2, 5], num_stages)
    forward_s = draw(seconds)
    return CostModel(
        forward_s,
        draw(seconds),
        draw(seconds),
        draw(st.one_of(st.just(()), seconds)),
        boundary_bytes=draw(per_stage([0, 2, 6], num_stages - 1)),
        overlapped_s=draw(st.one_of(st.just(()), seconds.map(partial(added, forward_s)))),
        reduction_s=draw(seconds),
    )


@st.composite
def orders(draw):
    """Valid schedules of every placement, some actions overlapping."""
    replicated = st.sampled_from(
        [Placement.bidirectional(2), Placement.bidirectional(3), Placement((0, 1), ((2, 3),))]
    )
    placement = draw(st.one_of(PLACEMENTS, replicated))
    schedule = random_valid(draw(st.integers(0, 2**32)), placement, draw(st.integers(1, 5)))
    could = [
        (rank, slot)
        for rank, row in enumerate(schedule.actions)
        for slot, (a, b) in enumerate(pairwise(row))
        if a.kind is ActionKind.F and b.kind in {ActionKind.B, ActionKind.I}
    ]
    overlaps = draw(st.frozensets(small(could), max_size=2)) if could else frozenset()
    schedule = replace(schedule, overlaps=overlaps)
    assume(not check(schedule))
    return schedule


@st.composite
def cases(draw):
    schedule = draw(orders())
    costs = draw(costs_of(schedule.num_stages))
    return schedule, costs, draw(machines(schedule.num_ranks))
