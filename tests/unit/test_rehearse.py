"""Rehearsals on threads: what ran, what was sent and what is said of it; never how long it took."""

import time
from dataclasses import replace
from itertools import pairwise

import pytest

from intandem.costs import CostModel
from intandem.errors import ActionError, ScheduleVerifyError
from intandem.ir import Action, Program, Recompute, Send, StageLinks
from intandem.lowering import lower
from intandem.rehearsal import Part, Rehearsal, TransportKind, rehearse
from intandem.rehearsal.emulation import Emulated
from intandem.rehearsal.links import Transfer, machine_of, rest_s, sizes_between
from intandem.rehearsal.rank import _Rank
from intandem.rehearsal.request import (
    NUM_WARMUP,
    Request,
    decode_report,
    decode_request,
    encode_report,
    encode_request,
    shortest_action_s,
)
from intandem.rehearsal.running import run_all
from intandem.rehearsal.waits import MAX_EARLY_S, Waiter
from intandem.schedules import build_schedule, schedule_names
from intandem.simulator import simulate

SHORT_S = 1e-4


def costs_of(num_stages, **changes):
    """Very short actions, and messages of another size at each boundary."""
    sizes = tuple(100 * (stage + 1) for stage in range(num_stages - 1))
    costs = CostModel.uniform(num_stages, SHORT_S, SHORT_S, SHORT_S)
    return replace(costs, boundary_bytes=sizes, **changes)


def part_of(schedule, links=None, **changes):
    """A schedule lowered, with short actions."""
    program = lower(schedule, links)
    return Part(program, costs_of(program.placement.num_stages, **changes))


def local(*parts, num_steps=1):
    return rehearse(parts, TransportKind.LOCAL, num_steps=num_steps)


def sends_of(program):
    return [i.message for row in program.instructions for i in row if isinstance(i, Send)]


@pytest.mark.parametrize("name", schedule_names())
@pytest.mark.parametrize(("ranks", "microbatches"), [(2, 4), (4, 8)])
def test_what_ran_is_what_was_lowered(name, ranks, microbatches):
    """Every rank ran its row in order; every message was sent, with its boundary's bytes."""
    schedule = build_schedule(name, num_ranks=ranks, num_microbatches=microbatches)
    part = part_of(schedule)

    (rehearsal,) = local(part)

    for rank in range(ranks):
        spans = rehearsal.measured.of_rank(rank)
        assert tuple(span.action for span in spans) == schedule.actions[rank]
        apart = [slot for slot in range(len(spans) - 1) if (rank, slot) not in schedule.overlaps]
        assert all(spans[slot].end_s <= spans[slot + 1].start_s for slot in apart)
    messages = sends_of(part.program)
    sizes = [part.costs.message_bytes(m.source.stage, m.target_stage) for m in messages]
    assert rehearsal.traffic.num_messages == len(messages)
    assert rehearsal.traffic.num_bytes == sum(sizes)
    sent = [emulated.sent for emulated in rehearsal.passes[0]]
    assert sum(traffic.num_messages for traffic in sent) == len(messages)
    assert sum(traffic.num_bytes for traffic in sent) == sum(sizes)


def test_steps_without_a_barrier(monkeypatch):
    """Their ranks agree on the beginning of the first alone; all of them run in order."""
    begun = []
    plain = _Rank._begin_together

    def begin_together(own, sequence):
        begun.append((own._transport.rank, sequence))
        plain(own, sequence)

    monkeypatch.setattr(_Rank, "_begin_together", begin_together)
    schedule = build_schedule("zb-2p", num_ranks=2, num_microbatches=4)
    (rehearsal,) = rehearse([part_of(schedule)], TransportKind.LOCAL, num_steps=3, overlap=True)

    assert len(rehearsal.steps) == 3
    assert len(rehearsal.overlapping) == NUM_WARMUP + 3
    measuring = 1  # links, before the first pass
    together = range(1 + measuring, 1 + measuring + NUM_WARMUP + 3 + 1)
    assert sorted(begun) == [(rank, number) for rank in range(2) for number in together]
    for own in range(2):
        spans = [span for step in rehearsal.overlapping for span in step[own].spans]
        assert [span.action for span in spans] == [*schedule.actions[own]] * (NUM_WARMUP + 3)
        assert all(one.end_s <= other.start_s for one, other in pairwise(spans))
    ends_s = [max(one.spans[-1].end_s for one in step) for step in rehearsal.overlapping]
    assert rehearsal.overlapping_s == pytest.approx((ends_s[-1] - ends_s[1]) / 3)


@pytest.mark.parametrize(("name", "gain"), [("zb-2p", 27 / 24), ("zb-h1", 1.0), ("1f1b", 1.0)])
def test_what_steps_without_a_barrier_gain_on_paper(name, gain):
    """With P = 4, M = 8 and F = I = W: what a rank is idle for between its own actions."""
    schedule = build_schedule(name, num_ranks=4, num_microbatches=8)
    program = lower(schedule)
    costs = replace(CostModel.uniform(4), optimizer_s=(9.0,) * 4)
    nothing = ((Emulated(),) * 4,) * (NUM_WARMUP + 3)
    rehearsal = Rehearsal(Part(program, costs), TransportKind.LOCAL, (), nothing[:3], nothing)
    found = rehearsal.planned.makespan_s / rehearsal.planned_overlapping_s
    assert found == pytest.approx(gain)


def test_actions_are_never_shorter_than_asked():
    """An action lasts at least as long as the costs say; one that needs another's begins later."""
    schedule = build_schedule("zb-h1", num_ranks=3, num_microbatches=4)
    (rehearsal,) = local(part_of(schedule, forward_s=(1e-4, 3e-4, 2e-4)))

    ends = {span.action: span.end_s for span in rehearsal.measured.spans}
    for span in rehearsal.measured.spans:
        assert span.end_s - span.start_s >= rehearsal.part.costs.seconds(span.action)
        if span.action.kind == "F" and span.action.stage:
            before = Action(span.action.stage - 1, span.action.kind, span.action.microbatch)
            assert ends[before] <= span.start_s
    assert rehearsal.measured_s >= simulate(schedule, rehearsal.part.costs).makespan_s
    assert rehearsal.overslept >= 0


def test_pairs_take_what_a_pair_takes():
    """Two actions that overlap have one span, of the length of the pair."""
    schedule = build_schedule("dualpipe", num_ranks=2, num_microbatches=6)
    pair_s = 1.5 * SHORT_S
    (rehearsal,) = local(part_of(schedule, overlapped_s=(pair_s,) * schedule.num_stages))

    assert schedule.overlaps
    for rank, slot in schedule.overlaps:
        first, second = rehearsal.measured.of_rank(rank)[slot : slot + 2]
        assert first[2:] == second[2:]
        assert first.end_s - first.start_s >= pair_s


def test_recomputing_takes_time():
    """A forward that is run again holds its rank, and is part of the backward after it."""
    schedule = build_schedule("1f1b", num_ranks=2, num_microbatches=2)
    program = lower(schedule, recompute={0, 1})
    assert any(isinstance(i, Recompute) for row in program.instructions for i in row)

    (rehearsal,) = local(Part(program, costs_of(2)))

    planned = {s.action: s.end_s - s.start_s for s in rehearsal.planned.spans}
    assert max(planned.values()) == pytest.approx(3 * SHORT_S)
    for span in rehearsal.measured.spans:
        assert span.end_s - span.start_s >= planned[span.action] * (1 - 1e-9)
    for rank in range(2):
        assert all(a.end_s <= b.start_s for a, b in pairwise(rehearsal.measured.of_rank(rank)))


def test_values_that_skip_a_stage():
    """A message to a stage further on has the bytes of the boundary before it."""
    links = StageLinks(((0, 1), (1, 2), (0, 2)), ((2, 1), (1, 0), (2, 0)))
    schedule = build_schedule("1f1b", num_ranks=3, num_microbatches=2)
    part = part_of(schedule, links)

    (rehearsal,) = local(part)

    assert rehearsal.traffic.num_messages == 2 * 6
    assert rehearsal.traffic.num_bytes == 2 * 2 * (100 + 200 + 200)
    assert {(t.low, t.high, t.num_bytes) for t in rehearsal.transfers} == {
        *[(0, 1, 0), (0, 1, 100), (0, 2, 0), (0, 2, 200), (1, 2, 0), (1, 2, 200)]
    }


def test_several_programs():
    """Parts run one after another on the same ranks, each as often as asked."""
    parts = [
        part_of(build_schedule(name, num_ranks=2, num_microbatches=4))
        for name in ("gpipe", "1f1b", "zb-v")
    ]
    told = []
    found = rehearse(parts, TransportKind.LOCAL, num_steps=3, on_progress=told.append)

    assert [rehearsal.part for rehearsal in found] == parts
    assert all(len(rehearsal.steps) == 3 for rehearsal in found)
    assert told == [(part, step) for part in range(3) for step in range(2 + 3)]
    for rehearsal in found:
        assert rehearsal.ratio == rehearsal.measured_s / rehearsal.planned.makespan_s
        starts = [step.start_s for step in rehearsal.steps]
        assert starts == sorted(starts)


def test_one_rank_has_no_messages():
    """There is nothing to measure, and nothing to send."""
    (rehearsal,) = local(part_of(build_schedule("1f1b", num_ranks=1, num_microbatches=3)))

    assert rehearsal.transfers == ()
    assert rehearsal.traffic.num_messages == 0
    assert len(rehearsal.measured.spans) == 6


def test_a_rank_that_fails_is_named():
    """What a rank raises comes back as the executor says it, and no rank waits for ever."""
    schedule = build_schedule("1f1b", num_ranks=2, num_microbatches=2)
    program = lower(schedule)
    forward_0, send_0, forward_1, send_1, *rest = program.instructions[0]
    rows = ((forward_0, send_1, forward_1, send_0, *rest), program.instructions[1])
    request = Request((Part(replace(program, instructions=rows), costs_of(2)),), 1)

    where = "at step 0 stage 1 micro-batch 0 action recv:0F0>1@0$"
    with pytest.raises(ActionError, match=f"^rank 1 raised ContractError: .* {where}"):
        run_all(request, TransportKind.LOCAL, lambda _: None)


def test_progress_that_raises_ends_the_run():
    """An error of the caller's own comes back as it is."""

    def interrupt(progress):
        raise LookupError(progress)

    part = part_of(build_schedule("gpipe", num_ranks=2, num_microbatches=2))
    with pytest.raises(LookupError):
        rehearse([part], TransportKind.LOCAL, on_progress=interrupt)


def test_refusals():
    """What cannot be rehearsed is refused before any rank starts."""
    one, two = (
        part_of(build_schedule("1f1b", num_ranks=ranks, num_microbatches=2)) for ranks in (1, 2)
    )
    with pytest.raises(ValueError, match=r"^programs of 1, 2 ranks; expected one number of ranks$"):
        local(one, two)
    with pytest.raises(ValueError, match=r"^programs of none ranks"):
        local()
    with pytest.raises(ValueError, match=r"^num_steps is 0; expected at least 1$"):
        local(one, num_steps=0)
    with pytest.raises(ValueError, match=r"^costs of 3 stages for 2 stages$"):
        local(Part(two.program, costs_of(3)))
    cut = replace(two.program, instructions=(two.program.instructions[0], ()))
    with pytest.raises(ScheduleVerifyError):
        local(Part(cut, two.costs))


def test_links_of_what_was_measured():
    """An empty message gives the latency, the largest the bandwidth; both ways are alike."""
    machine = machine_of(
        [Transfer(0, 1, 0, 1e-4), Transfer(0, 1, 500, 2e-4), Transfer(0, 1, 1000, 3e-4)], 3
    )

    link = machine.link_of(0, 1)
    assert (link.latency_s, link.bandwidth_bytes_per_s) == (1e-4, pytest.approx(1000 / 2e-4))
    assert machine.link_of(1, 0) == link
    costs = CostModel.uniform(2)
    assert sizes_between(program_of("1f1b"), costs) == {(0, 1): {0}}


def test_larger_messages_that_were_faster():
    """Where bytes took no time that could be seen, the bandwidth is infinite."""
    machine = machine_of([Transfer(0, 1, 0, 2e-4), Transfer(0, 1, 500, 1e-4)], 2)

    assert machine.link_of(0, 1).latency_s == 2e-4
    assert machine.link_of(0, 1).bandwidth_bytes_per_s == float("inf")


def program_of(name) -> Program:
    return lower(build_schedule(name, num_ranks=2, num_microbatches=2))


def test_what_processes_tell_each_other():
    """Requests and reports come back equal."""
    schedule = build_schedule("dualpipe", num_ranks=2, num_microbatches=4)
    parts = (part_of(schedule), Part(program_of("zb-h1"), CostModel.uniform(2, 0.1, 0.2, 0.3)))
    request = Request(parts, 3)
    assert decode_request(encode_request(request)) == request

    for report in run_all(Request(parts[:1], 1), TransportKind.LOCAL, lambda _: None):
        assert decode_report(encode_report(report)) == report


def test_waits_end_in_time():
    """A wait never ends before its end, and one that is over already ends at once."""
    waiter = Waiter()

    assert 0 <= waiter.early_s <= MAX_EARLY_S
    for length_s in (0.0, 1e-5, 1e-3):
        end_s = time.perf_counter() + length_s
        waiter.until(end_s)
        assert time.perf_counter() >= end_s
    waiter.until(float("-inf"))


@pytest.mark.parametrize(("action_s", "expected"), [(1e-5, 1e-3), (4e-3, 4e-3), (0.5, 20e-3)])
def test_links_are_measured_after_rests_as_long_as_an_action(action_s, expected):
    """Within limits: what two idle ranks take depends on how long they have been idle."""
    assert rest_s(action_s) == expected


def test_the_shortest_action_is_that_of_any_stage_and_kind():
    """Of all parts, as links are measured once."""
    costs = CostModel((0.3, 0.2), (0.3, 0.2), (0.3, 0.1))
    assert shortest_action_s([costs, CostModel.uniform(2, 0.2, 0.15, 0.2)]) == 0.1
    assert shortest_action_s([CostModel.uniform(2, 0.2, 0.15, 0.2)]) == 0.15
