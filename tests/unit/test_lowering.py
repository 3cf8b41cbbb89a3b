"""Lowering adds transfers, recomputation and reduction, and keeps the compute order."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from order_samples import random_valid, sched, valid_schedules

from intandem.costs import CostModel
from intandem.errors import ScheduleVerifyError
from intandem.ir import Placement, Recv, Send, StageLinks, format_program, parse_program
from intandem.lowering import lower
from intandem.rules import verify
from intandem.schedules import build_schedule
from intandem.simulator import simulate


def all_links(num_stages):
    """Every stage reads every earlier one."""
    forward = [(s, t) for t in range(num_stages) for s in range(t)]
    return StageLinks(tuple(forward), tuple((t, s) for s, t in forward))


def test_two_ranks():
    """Sends directly after the compute that makes them, receives directly before the need."""
    program = lower(build_schedule("1f1b", num_ranks=2, num_microbatches=2))

    assert str(program).splitlines() == [
        "rank 0: 0F0 send:0F0>1@1 0F1 send:0F1>1@1 recv:1B0>0@1 0B0 recv:1B1>0@1 0B1",
        "rank 1: recv:0F0>1@0 1F0 1B0 send:1B0>0@0 recv:0F1>1@0 1F1 1B1 send:1B1>0@0",
    ]


def test_recompute_and_reduce():
    """The forward is repeated after the backward's receives; the reduction ends each row."""
    schedule = sched("0F0 0B0", "1F0 1I0 1W0")

    program = lower(schedule, recompute={0, 1}, reduce=True)

    assert str(program).splitlines() == [
        "rank 0: 0F0 send:0F0>1@1 recv:1I0>0@1 recompute:0F0 0B0 reduce",
        "rank 1: recv:0F0>1@0 1F0 recompute:1F0 1I0 send:1I0>0@0 1W0 reduce",
    ]


def test_stages_of_one_rank_need_no_transfer():
    """The turn of a V is within a rank."""
    schedule = sched("0F0 3F0 3B0 0B0", "1F0 2F0 2B0 1B0", placement=Placement.vee(2))

    program = lower(schedule)

    assert str(program).splitlines() == [
        "rank 0: 0F0 send:0F0>1@1 recv:2F0>3@1 3F0 3B0 send:3B0>2@1 recv:1B0>0@1 0B0",
        "rank 1: recv:0F0>1@0 1F0 2F0 send:2F0>3@0 recv:3B0>2@0 2B0 1B0 send:1B0>0@0",
    ]


def test_skips_go_straight():
    """One message per link, from producer to consumer."""
    links = StageLinks(((0, 1), (0, 2), (1, 2)), ((2, 1), (1, 0)))

    program = lower(sched("0F0 0B0", "1F0 1B0", "2F0 2B0"), links)

    assert str(program).splitlines() == [
        "rank 0: 0F0 send:0F0>1@1 send:0F0>2@2 recv:1B0>0@1 0B0",
        "rank 1: recv:0F0>1@0 1F0 send:1F0>2@2 recv:2B0>1@2 1B0 send:1B0>0@0",
        "rank 2: recv:0F0>2@0 recv:1F0>2@1 2F0 2B0 send:2B0>1@1",
    ]


def test_receives_are_hoisted_to_the_order_of_sends():
    """Rank 1 needs micro-batch 1 first, but 0F0 was sent first: it is received first."""
    schedule = sched("0F0 0F1 0B1 0B0", "1F1 1B1 1F0 1B0", microbatches=2)

    program = lower(schedule)

    row = "rank 1: recv:0F0>1@0 recv:0F1>1@0 1F1 1B1 send:1B1>0@0 1F0 1B0 send:1B0>0@0"
    assert str(program).splitlines()[1] == row


@given(valid_schedules, st.booleans(), st.sets(st.integers(0, 1)))
@settings(max_examples=100, deadline=None)
def test_computes_are_those_of_the_schedule(schedule, reduce, recompute):
    """In the same order, whatever is added; messages are as many as the links ask for."""
    recompute = {stage for stage in recompute if stage < schedule.num_stages}
    links = all_links(schedule.num_stages)

    program = lower(schedule, links, recompute=recompute, reduce=reduce)

    verify(program)
    rows = tuple(program.actions(rank) for rank in range(program.num_ranks))
    assert rows == schedule.actions
    rank_of = schedule.placement.rank_of
    crossing = [s for s, t in links.activations + links.gradients if rank_of[s] != rank_of[t]]
    for kind in (Send, Recv):
        found = [i for row in program.instructions for i in row if isinstance(i, kind)]
        assert len(found) == len(crossing) * schedule.num_microbatches


@given(valid_schedules, st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_hoisting_costs_no_time(schedule, transfer_s):
    """A program is as fast as its schedule would be with a free choice of receives."""
    costs = CostModel.uniform(schedule.num_stages, transfer_s=float(transfer_s))

    timeline = simulate(schedule, costs)

    assert timeline.makespan_s == _earliest_end_s(schedule, float(transfer_s))


def _earliest_end_s(schedule, transfer_s):
    """Written on its own: repeat until no end moves, each action as early as its needs allow."""
    rank_of = schedule.placement.rank_of
    last = schedule.num_stages - 1
    end_s = {}
    for _ in range(sum(map(len, schedule.actions))):
        for rank, row in enumerate(schedule.actions):
            free_s = 0.0
            for a in row:
                needs = []
                if a.kind == "F" and a.stage > 0:
                    needs.append((a.stage - 1, "F"))
                if a.kind in {"B", "I"} and a.stage < last:
                    needs.append((a.stage + 1, "G"))
                start_s = free_s
                for stage, what in needs:
                    hop_s = transfer_s if rank_of[stage] != rank else 0.0
                    start_s = max(start_s, end_s.get((stage, what, a.microbatch), 0.0) + hop_s)
                free_s = start_s + (2.0 if a.kind == "B" else 1.0)
                what = "G" if a.kind in {"B", "I"} else a.kind
                end_s[a.stage, str(what), a.microbatch] = free_s
    return max(end_s.values())


def test_refuses_an_invalid_schedule():
    """The error is the verifier's."""
    with pytest.raises(ScheduleVerifyError, match="S003 rank 0 slot 0: 0B0 waits forever"):
        lower(sched("0B0 0F0"))


def test_refuses_links_that_do_not_exist():
    """Links are checked on the result."""
    with pytest.raises(ScheduleVerifyError, match="P001 rank 0: activations link 0>1: stages end"):
        lower(sched("0F0 0B0"), StageLinks(((0, 1),), ()))


def test_refuses_an_unknown_stage_to_recompute():
    """The message names it and what there is."""
    with pytest.raises(ValueError, match=r"recompute names stage 3; stages are 0\.\.0"):
        lower(sched("0F0 0B0"), recompute={3})


def test_many_ranks_in_random_order():
    """64 ranks of two stages and 64 micro-batches, with every pass."""
    schedule = random_valid(1, Placement.loop(64, 2), 64)

    assert lower(schedule, recompute=set(range(128)), reduce=True).num_ranks == 64


def test_pairs_receive_before_and_send_after():
    """Of two that overlap, both have received before the first, and both send after the second."""
    order = sched("0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1", microbatches=2)
    program = lower(replace(order, overlaps=frozenset({(0, 1)})))

    assert str(program).splitlines()[0] == (
        "rank 0: 0F0 send:0F0>1@1 recv:1B0>0@1 0F1& 0B0 send:0F1>1@1 recv:1B1>0@1 0B1"
    )
    assert program.compute_order() == replace(order, overlaps=frozenset({(0, 1)}))
    assert parse_program(format_program(program)) == program

    again = lower(replace(order, overlaps=frozenset({(0, 1)})), recompute={0})
    assert str(again).splitlines()[0] == (
        "rank 0: 0F0 send:0F0>1@1 recv:1B0>0@1 recompute:0F0 0F1& 0B0 send:0F1>1@1 "
        "recv:1B1>0@1 recompute:0F1 0B1"
    )


def test_replicas_send_within_themselves():
    """Each direction of two has its own neighbours."""
    order = sched(
        "0F0 1F1 1B1 0B0", "0F1 1F0 1B0 0B1", microbatches=2,
        placement=Placement.bidirectional(2),
    )  # fmt: skip

    assert str(lower(order)).splitlines() == [
        "rank 0: 0F0 send:0F0>1@1 recv:0F1>1@1 1F1 1B1 send:1B1>0@1 recv:1B0>0@1 0B0",
        "rank 1: 0F1 send:0F1>1@0 recv:0F0>1@0 1F0 1B0 send:1B0>0@0 recv:1B1>0@0 0B1",
    ]
