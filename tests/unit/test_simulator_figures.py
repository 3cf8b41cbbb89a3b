"""Figures without spans, of orders kept and of orders read once; and what is refused on the way."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machine_samples import cases
from order_samples import sched, valid_schedules

from intandem.costs import CostModel
from intandem.errors import ScheduleError, ScheduleVerifyError
from intandem.ir import ActionKind, Placement
from intandem.ir.codes import ActionCodes
from intandem.lowering import lower
from intandem.machine import Machine
from intandem.rules import check
from intandem.schedules import build_schedule
from intandem.schedules.one_f_one_b import one_f_one_b_codes
from intandem.simulator import peak_activations, simulate, simulate_codes, simulate_figures

UNIT = CostModel.uniform


def codes_of(schedule):
    codes = ActionCodes(schedule.num_stages, schedule.num_microbatches)
    return [codes.of_actions(row) for row in schedule.actions]


def stream(schedule, costs, machine=None):
    """Figures of ``schedule``, read action by action."""
    rows = map(iter, codes_of(schedule))
    counts = schedule.placement, schedule.num_microbatches
    return simulate_codes(list(rows), *counts, costs, machine)


def test_figures_of_two_ranks():
    """F takes 1, B takes 2, a transfer 0.5."""
    figures = simulate_figures(sched("0F0 0B0", "1F0 1B0"), UNIT(2, transfer_s=0.5))

    assert figures.num_actions == 4
    assert (figures.starts_s, figures.ends_s) == ((0, 1.5), (7, 4.5))
    assert (figures.makespan_s, figures.rank_span_s) == (7, 7)
    assert figures.busy_s == (3, 3)
    assert figures.bubble_ratio == figures.rank_bubble_ratio == 1 - 6 / 14
    assert figures.peak_activations == (1, 1)


def test_figures_of_no_time():
    """Costs of 0 leave no bubble."""
    assert simulate_figures(sched("0F0 0B0"), UNIT(1, 0.0, 0.0, 0.0)).bubble_ratio == 0


@given(cases(), st.booleans(), st.booleans())
@settings(max_examples=80, deadline=None)
def test_figures_are_the_timelines(case, lowered, recompute):
    """Of schedules and programs, pairs and replicas, on any machine."""
    schedule, costs, machine = case
    stages = frozenset({0}) if recompute else frozenset()
    order = lower(schedule, recompute=stages) if lowered else schedule

    figures = simulate_figures(order, costs, machine)

    timeline = simulate(order, costs, machine)
    assert figures.num_actions == len(timeline.spans)
    assert figures.makespan_s == timeline.makespan_s
    assert figures.rank_span_s == timeline.rank_span_s
    if machine.transfers_overlap or not recompute:
        ranks = range(timeline.num_ranks)
        assert figures.busy_s == tuple(timeline.busy_of_rank_s(rank) for rank in ranks)
        assert figures.bubble_ratio == pytest.approx(timeline.bubble_ratio)
    assert figures.peak_activations == peak_activations(timeline)


class TestStreams:
    @given(cases())
    @settings(max_examples=80, deadline=None)
    def test_are_as_what_is_kept(self, case):
        """An order read once has the figures of the schedule."""
        schedule, costs, machine = case
        schedule = replace(schedule, overlaps=frozenset())
        machine = replace(machine, transfers_overlap=True)

        assert stream(schedule, costs, machine) == simulate_figures(schedule, costs, machine)

    def test_of_forwards_alone(self):
        """A forward keeps nothing if there are no backwards."""
        schedule = sched("0F0 0F1", "1F0 1F1", microbatches=2)

        figures = stream(schedule, UNIT(2))

        assert figures.peak_activations == (1, 1)
        assert figures == simulate_figures(schedule, UNIT(2))

    @pytest.mark.parametrize(("num_ranks", "num_microbatches"), [(1, 1), (2, 5), (5, 3), (8, 40)])
    def test_1f1b_is_stated_once(self, num_ranks, num_microbatches):
        """The stream of 1f1b is the schedule's order."""
        schedule = build_schedule("1f1b", num_ranks=num_ranks, num_microbatches=num_microbatches)

        rows = one_f_one_b_codes(num_ranks, num_microbatches)

        assert [list(row) for row in rows] == codes_of(schedule)

    def test_are_read_side_by_side(self):
        """A rank is read no further than it can run: in 1f1b, a few actions ahead of the others."""
        read, leads = [0, 0, 0, 0], []

        def watched(rank, row):
            for code in row:
                read[rank] += 1
                leads.append(max(read) - min(read))
                yield code

        rows = [watched(rank, row) for rank, row in enumerate(one_f_one_b_codes(4, 100))]
        simulate_codes(rows, Placement.loop(4), 100, UNIT(4))

        assert read == [200] * 4
        assert max(leads) <= 8

    def test_refuses_machines_on_which_the_order_of_receives_counts(self):
        """Says what takes them."""
        schedule = sched("0F0 0B0", "1F0 1B0")
        with pytest.raises(ValueError, match="use simulate_figures"):
            stream(schedule, UNIT(2), Machine(2, transfers_overlap=False))

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            (("0F0 0F0", "1F0 1B0"), "rank 0: 0F0 comes too early, or once too often"),
            (("0F0 1B0", "1F0 1B0"), "rank 0: 1B0 is of no stage on this rank"),
            (("0F0 0B0", "1B0 1F0"), "rank 1: 1B0 comes too early, or once too often"),
            (("0B0 0F0", "1F0 1B0"), "rank 0: 0B0 comes too early, or once too often"),
            (("0F0", "1F0 1B0"), "stage 0 does not do all it should with micro-batch 0"),
            (("0F0 0I0", "1F0 1B0"), "stage 0 does not do all it should with micro-batch 0"),
            (("0F0 0B0", "1F0"), "ranks 0 wait for each other forever"),
            (("", "1F0 1B0"), "ranks 1 wait for each other forever"),
        ],
    )
    def test_refuses(self, rows, message):
        """The first action that breaks a rule, or what is missing at the end."""
        with pytest.raises(ScheduleError, match=message):
            stream(sched(*rows), UNIT(2))

    def test_refuses_ranks_that_wait_for_each_other(self):
        """Two micro-batches in opposite order."""
        schedule = sched("0F0 0B0 0F1 0B1", "1F1 1B1 1F0 1B0", microbatches=2)
        with pytest.raises(ScheduleError, match="ranks 0, 1 wait for each other forever"):
            stream(schedule, UNIT(2))


def broken(schedule, rng):
    """``schedule`` with one action moved, dropped, doubled, or made another one."""
    rows = [list(row) for row in schedule.actions]
    row = rng.choice([row for row in rows if row])
    at = rng.randrange(len(row))
    match rng.randrange(5):
        case 0:
            row.insert(rng.randrange(len(row)), row.pop(at))
        case 1:
            del row[at]
        case 2:
            row.insert(rng.randrange(len(row)), row[at])
        case 3:
            row[at] = replace(row[at], kind=rng.choice(list(ActionKind)))
        case 4:
            rng.choice(rows).append(row.pop(at))
    return replace(schedule, actions=tuple(map(tuple, rows)))


class TestRefusals:
    """The engine sees by itself whether ranks wait; the rules are what it must agree with."""

    @given(valid_schedules, st.integers(0, 2**32))
    @settings(max_examples=400, deadline=None)
    def test_are_those_of_the_rules(self, schedule, seed):
        """Whatever is refused by the rules, with the same findings, and nothing else."""
        schedule = broken(schedule, random.Random(seed))
        found = check(schedule)
        costs = UNIT(schedule.num_stages)
        if not found:
            assert stream(schedule, costs) == simulate_figures(schedule, costs)
            return

        with pytest.raises(ScheduleVerifyError) as refusal:
            simulate(schedule, costs)
        with pytest.raises(ScheduleError):
            stream(schedule, costs)

        assert refusal.value.diagnostics == found

    @given(valid_schedules, st.integers(0, 2**32))
    @settings(max_examples=200, deadline=None)
    def test_of_pairs_are_those_of_the_rules(self, schedule, seed):
        """A pair may wait for itself, or be none at all."""
        rng = random.Random(seed)
        rank = rng.randrange(schedule.num_ranks)
        slot = rng.randrange(len(schedule.actions[rank]))
        schedule = replace(schedule, overlaps=frozenset({(rank, slot)}))
        costs = UNIT(schedule.num_stages)
        if found := check(schedule):
            with pytest.raises(ScheduleVerifyError) as refusal:
                simulate(schedule, costs)
            assert refusal.value.diagnostics == found
        else:
            simulate(schedule, costs)
