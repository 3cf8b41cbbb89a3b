"""The clock on every kind of machine: against hand-drawn timelines and a second simulator."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machine_samples import cases, small
from order_samples import prog, sched
from ticks import Ticks

from intandem.costs import CostModel
from intandem.ir import Placement
from intandem.lowering import lower
from intandem.machine import Link, Machine
from intandem.simulator import simulate

UNIT = CostModel.uniform


def clock(timeline):
    return [f"{s.rank}: {s.action} {s.start_s:g}-{s.end_s:g}" for s in timeline.spans]


def starts(timeline, *actions):
    found = {str(span.action): span.start_s for span in timeline.spans}
    return [found[action] for action in actions]


class TestLinks:
    def test_each_pair_has_its_own(self):
        """Down takes 3 and back up 1; the costs' own latency does not count."""
        machine = Machine(2, links={(0, 1): Link(3.0), (1, 0): Link(1.0)})

        timeline = simulate(sched("0F0 0B0", "1F0 1B0"), UNIT(2, transfer_s=9.0), machine)

        assert clock(timeline) == ["0: 0F0 0-1", "0: 0B0 8-10", "1: 1F0 4-5", "1: 1B0 5-7"]

    def test_a_shared_wire_carries_one_message_at_a_time(self):
        """Two replicas of two stages, on ranks 0, 2 and 1, 3, with one uplink for ranks 0 and 1.

        Both first forwards end at 1. The message of rank 0 has the uplink until 5, that of rank 1
        until 9; with wires of their own both have left at 5.
        """
        placement = Placement((0, 2), ((1, 3),))
        schedule = sched("0F0", "0F1", "1F0", "1F1", microbatches=2, placement=placement)
        costs = replace(UNIT(2), boundary_bytes=(8,))
        alone = Machine(4, Link(0.5, 2.0))
        shared = replace(alone, shared_wires=(((0, 2), (1, 3)),))

        assert starts(simulate(schedule, costs, alone), "1F0", "1F1") == [5.5, 5.5]
        assert starts(simulate(schedule, costs, shared), "1F0", "1F1") == [5.5, 9.5]

    def test_who_is_ready_first_goes_first(self):
        """One wire for both hops of three stages; a message has it for 2 seconds.

        0F0 has it from 2, 0F1 from 4, and 1F0, ready at 5, from 6: before 0F2, which is ready at
        6 and has it from 8.
        """
        schedule = sched("0F0 0F1 0F2", "1F0 1F1 1F2", "2F0 2F1 2F2", microbatches=3)
        costs = replace(UNIT(3), forward_s=(2.0, 1.0, 1.0), boundary_bytes=(2, 2))
        machine = Machine(3, Link(0.0, 1.0), shared_wires=(((0, 1), (1, 2)),))

        timeline = simulate(schedule, costs, machine)

        assert starts(timeline, "1F0", "1F1", "1F2") == [4, 6, 10]
        assert starts(timeline, "2F0", "2F1", "2F2") == [8, 12, 14]

    def test_an_uplink_of_one_rank(self):
        """Ranks 1 and 2 hang on one wire of rank 0: what goes to the second waits for the first."""
        placement = Placement((0, 1, 0, 2))
        rows = "0F0 0F1 2F0 2F1", "1F0 1F1", "3F0 3F1"
        schedule = sched(*rows, microbatches=2, placement=placement)
        costs = replace(UNIT(4), boundary_bytes=(3, 0, 3))
        machine = Machine(3, Link(0.0, 1.0), shared_wires=(((0, 1), (0, 2)),))

        timeline = simulate(schedule, costs, machine)

        assert starts(timeline, "1F0", "1F1", "2F0", "2F1") == [4, 7, 5, 8]
        assert starts(timeline, "3F0", "3F1") == [10, 13]

    def test_refuses_a_machine_of_other_ranks(self):
        """The message has both numbers."""
        with pytest.raises(ValueError, match="a machine of 3 ranks for 2 ranks; expected the same"):
            simulate(sched("0F0 0B0", "1F0 1B0"), UNIT(2), Machine(3))


class TestTransfersThatHoldRanks:
    COSTS = replace(UNIT(2), boundary_bytes=(6,))
    FORWARDS = sched("0F0 0F1", "1F0 1F1", microbatches=2)

    def test_send_and_receive(self):
        """Latency 1 and bytes 3: the sender is held 1-4, the receiver 2-5."""
        machine = Machine(2, Link(1.0, 2.0), transfers_overlap=False)

        timeline = simulate(self.FORWARDS, self.COSTS, machine)

        assert clock(timeline) == ["0: 0F0 0-1", "0: 0F1 4-5", "1: 1F0 5-6", "1: 1F1 9-10"]

    def test_an_early_message_still_holds_its_receiver(self):
        """The second message has come by 9; taking it in at 15 takes 3 seconds all the same."""
        machine = Machine(2, Link(1.0, 2.0), transfers_overlap=False)
        costs = replace(self.COSTS, forward_s=(1.0, 10.0))

        timeline = simulate(self.FORWARDS, costs, machine)

        assert clock(timeline)[2:] == ["1: 1F0 5-15", "1: 1F1 18-28"]

    def test_latency_holds_nobody(self):
        """Without bytes, machines of both kinds are the same."""
        schedule = sched("0F0 0F1 0B0 0B1", "1F0 1F1 1B0 1B1", microbatches=2)
        held = Machine(2, Link(1.0), transfers_overlap=False)

        assert simulate(schedule, UNIT(2), held) == simulate(schedule, UNIT(2, transfer_s=1.0))


class TestPairs:
    """1F1 and 1B0 overlap."""

    SCHEDULE = replace(
        sched("0F0 0F1 0B0 0B1", "1F0 1F1 1B0 1B1", microbatches=2), overlaps=frozenset({(1, 1)})
    )

    def test_start_when_both_can_and_end_together(self):
        """1B0 could run from 5; 0F1 is there at 8. What both hand over leaves at the end, 11."""
        costs = replace(UNIT(2), forward_s=(4.0, 1.0))

        timeline = simulate(self.SCHEDULE, costs)

        assert clock(timeline)[4:] == ["1: 1F0 4-5", "1: 1F1 8-11", "1: 1B0 8-11", "1: 1B1 11-13"]
        assert starts(timeline, "0B0", "0B1") == [11, 13]
        assert timeline.busy_s == 4 + 4 + 2 + 2 + 1 + 3 + 2

    def test_take_what_pairs_cost(self):
        """By the stage of the forward."""
        costs = replace(UNIT(2), overlapped_s=(9.0, 2.5))

        assert clock(simulate(self.SCHEDULE, costs))[5:7] == ["1: 1F1 2-4.5", "1: 1B0 2-4.5"]

    def test_forward_hands_over_first(self):
        """On one link, 0F1's message leaves before 2B0's: rank 1 has 1F1 at 9 and 1B0 at 11."""
        placement = Placement((0, 1, 0))
        schedule = sched(
            "0F0 2F0 0F1 2B0 2F1 2B1 0B0 0B1",
            "1F0 1F1 1B0 1B1",
            microbatches=2,
            placement=placement,
        )
        schedule = replace(schedule, overlaps=frozenset({(0, 2)}))
        costs = replace(UNIT(3), boundary_bytes=(2, 2))

        timeline = simulate(schedule, costs, Machine(2, Link(0.0, 1.0)))

        assert clock(timeline)[2:4] == ["0: 0F1 7-10", "0: 2B0 7-10"]
        assert starts(timeline, "1F1", "1B0") == [12, 14]

    def test_of_a_program(self):
        """Recomputation comes before both, and is shown as part of the backward."""
        rows = (
            "0F0 send:0F0>1@1 0F1 send:0F1>1@1 recv:1B0>0@1 0B0 recv:1B1>0@1 0B1",
            "recv:0F0>1@0 1F0 recv:0F1>1@0 recompute:1F0 1F1& 1B0 send:1B0>0@0 1B1 send:1B1>0@0",
        )
        timeline = simulate(prog(*rows, microbatches=2), UNIT(2))

        assert clock(timeline)[5:] == ["1: 1F1 3-6", "1: 1B0 2-6", "1: 1B1 6-8"]
        assert timeline.busy_of_rank_s(1) == 1 + 4 + 2


def spans_by_rank(timeline):
    return [
        [(s.action, s.start_s, s.end_s) for s in timeline.of_rank(rank)]
        for rank in range(timeline.num_ranks)
    ]


@given(cases())
@settings(max_examples=200, deadline=None)
def test_a_schedule_runs_as_a_second_simulator_runs_its_program(case):
    """Unequal links, shared wires, transfers that hold ranks, pairs, replicas: the same spans."""
    schedule, costs, machine = case

    assert spans_by_rank(simulate(schedule, costs, machine)) == (
        Ticks(lower(schedule), costs, machine).spans
    )


@given(cases(), st.booleans(), st.data())
@settings(max_examples=100, deadline=None)
def test_a_program_runs_as_in_a_second_simulator(case, reduce, data):
    """Recomputation and reductions as well."""
    schedule, costs, machine = case
    stages = data.draw(st.frozensets(small(range(schedule.num_stages))))
    program = lower(schedule, recompute=stages, reduce=reduce)

    assert spans_by_rank(simulate(program, costs, machine)) == (
        Ticks(program, costs, machine).spans
    )
