"""Traces and tables of spans: of simulated steps and of measured ones."""

import csv
import io
import json
import time

import pytest
import torch
from order_samples import prog
from report_sample import timeline
from torch import nn

import intandem as it
from intandem.costs import CostModel
from intandem.ir import Action, Arrival, Message, Timeline, handovers
from intandem.lowering import lower
from intandem.schedules import build_schedule, schedule_names
from intandem.simulator import activations, simulate
from intandem.views.chrome_trace import chrome_trace
from intandem.views.report import OptimizerSpan
from intandem.views.spans_csv import spans_csv
from trace_format import check_trace

TWO_RANKS = prog(
    "0F0 send:0F0>1@1 recv:1B0>0@1 0B0", "recv:0F0>1@0 1F0 1B0 send:1B0>0@0", microbatches=1
)
MEASURED = Timeline(
    timeline(["0F0 10 11", "0B0 15 16"], ["1F0 12 13", "1B0 13 14"]).spans,
    2,
    (
        Arrival(0, Message(Action.parse("1B0"), 0), 14.75),
        Arrival(1, Message(Action.parse("0F0"), 1), 11.5),
    ),
)


def program(name, num_ranks=4, num_microbatches=8):
    return lower(build_schedule(name, num_ranks=num_ranks, num_microbatches=num_microbatches))


def model():
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4)])


def square(output, batch):
    del batch
    return output.square().mean()


@pytest.mark.parametrize("name", [n for n in schedule_names() if n != "chimera"])
def test_every_schedule_makes_a_valid_trace(name):
    """A row per rank, an event per action, an arrow per message."""
    order = program(name)
    found = simulate(order, CostModel.uniform(order.placement.num_stages, 1e-3, 1e-3, 1e-3))

    text = chrome_trace(found, title=name, program=order, activations=activations(found))

    events = check_trace(text, 4)
    assert len(events["X"]) == len(found.spans)
    assert len(events["s"]) == len(handovers(order)) > 0


def test_handovers():
    """Of each message: the action that needs it, and both ranks."""
    assert [(str(h.message), str(h.target), *h[2:]) for h in handovers(TWO_RANKS)] == [
        ("1B0>0", "0B0", 1, 0),
        ("0F0>1", "1F0", 0, 1),
    ]


def test_gradients_go_to_the_backward_for_inputs():
    """Where backwards are split, I needs what I made, and W nothing."""
    targets = {str(h.target.kind) for h in handovers(program("zb-h1"))}

    assert targets == {"F", "I"}


def test_waits_of_a_measured_step():
    """From when a rank is free until the message is there; what comes then is neither."""
    events = check_trace(chrome_trace(MEASURED, title="", program=TWO_RANKS), 2)["X"]

    found = [(e["tid"], e["name"], e["ts"], e["dur"]) for e in events if e["cat"] == "wait"]
    assert found == [(1, "wait 1B0>0", 1e6, 3.75e6), (2, "wait 0F0>1", 0, 1.5e6)]


def test_updates_are_events():
    """Of the rank that made them, after its actions."""
    text = chrome_trace(MEASURED, title="", optimizer=[OptimizerSpan(1, 14.0, 14.5)])

    last = check_trace(text, 2)["X"][-1]
    assert (last["tid"], last["name"], last["ts"], last["dur"]) == (2, "optimizer", 4e6, 5e5)


def test_arrows_begin_and_end_in_their_actions():
    """At the last nanosecond of the one and the first of the other."""
    events = check_trace(chrome_trace(MEASURED, title="", program=TWO_RANKS), 2)

    assert [e["ts"] for e in events["s"]] == [pytest.approx(4e6 - 0.001), pytest.approx(1e6 - 1e-3)]
    assert [e["ts"] for e in events["f"]] == [5e6, 2e6]


def test_actions_that_take_no_time():
    """Stay on their rows, with arrows."""
    order = program("zb-h1", 2, 3)

    check_trace(chrome_trace(simulate(order, CostModel.uniform(2, 1, 0, 0)), title="t"), 2)


def test_table_of_spans():
    """All digits, in rank order, from 0; updates come along."""
    text = spans_csv(MEASURED, optimizer=[OptimizerSpan(0, 16.0, 16.125)])

    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["action"] for row in rows] == ["0F0", "0B0", "O", "1F0", "1B0"]
    assert rows[1] == {
        "rank": "0", "action": "0B0", "stage": "0", "kind": "B", "microbatch": "0",
        "start_s": "5.0", "end_s": "6.0",
    }  # fmt: skip
    assert (rows[2]["kind"], rows[2]["stage"], rows[2]["end_s"]) == ("O", "", "6.125")


@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1", "interleaved"])
def test_a_step_that_ran(tmp_path, schedule):
    """Its trace is valid, has what its table has, and an arrow for every message."""
    x = torch.randn(8, 8)
    with it.Pipeline(
        model(), example=x, loss=square, ranks=2, microbatches=4, schedule=schedule
    ) as pipe:
        pipe.step(x)
        paths = pipe.trace(tmp_path / "t.json", title="ran"), pipe.trace(tmp_path / "t.csv")
        found, order = pipe.timeline(), pipe.program()

    events = check_trace(paths[0].read_text(), 2)
    actions = [e for e in events["X"] if e["cat"] != "wait"]
    assert events["M"][0]["args"] == {"name": "ran"}
    assert sorted(e["name"] for e in actions) == sorted(str(s.action) for s in found.spans)
    assert len(events["s"]) == len(handovers(order)) == len(found.arrivals)
    assert len(list(csv.DictReader(io.StringIO(paths[1].read_text())))) == len(found.spans)


def test_arrivals_lie_between_maker_and_taker(tmp_path):
    """A message is there after the action that made it, before the one that needs it."""
    del tmp_path
    x = torch.randn(8, 8)
    with it.Pipeline(model(), example=x, loss=square, ranks=2, microbatches=4) as pipe:
        pipe.step(x)
        found, order = pipe.timeline(), pipe.program()

    spans = {s.action: s for s in found.spans}
    there = {(a.rank, a.message): a.time_s for a in found.arrivals}
    for handover in handovers(order):
        time_s = there[handover.target_rank, handover.message]
        assert spans[handover.message.source].end_s < time_s < spans[handover.target].start_s


def test_a_forward_that_runs_again_is_part_of_its_backward():
    """As the simulator has it: what recomputation takes is no idle time."""
    x, times_s = torch.randn(8, 8), []

    class Clocked(nn.Module):
        def forward(self, x):
            times_s.append(time.perf_counter())
            return x * 1

    net = nn.Sequential(nn.Sequential(nn.Linear(8, 8), Clocked()))
    with it.Pipeline(net, example=x, loss=square, ranks=1, microbatches=2, recompute="all") as pipe:
        times_s.clear()
        pipe.step(x)
        spans = pipe._steps.last().spans  # on the clock of this test

    within = [str(s.action) for t in times_s for s in spans if s.start_s < t < s.end_s]
    assert within == ["0F0", "0B0", "0F1", "0B1"]


def test_updates_of_the_step_are_in_its_trace(tmp_path):
    """Once ranks have stepped; before, those of the step before are not shown."""
    x = torch.randn(8, 8)
    with it.Pipeline(model(), example=x, loss=square, ranks=2, microbatches=4) as pipe:
        optimizer = pipe.optimizer(lambda p: torch.optim.SGD(p, 0.1))
        counts = []
        for _ in range(2):
            pipe.step(x)
            counts.append(_num_updates(pipe.trace(tmp_path / "t.json")))
            optimizer.step()
            counts.append(_num_updates(pipe.trace(tmp_path / "t.json")))

    assert counts == [0, 2, 0, 2]


def _num_updates(path):
    events = check_trace(path.read_text(), 2)["X"]
    return [event["name"] for event in events].count("optimizer")


@pytest.mark.parametrize(
    "change",
    [
        lambda events: events[-1].update(id=99),
        lambda events: events[-1].update(ts=0.0),
        lambda events: events[-2].update(tid=2),
        lambda events: events[5].update(dur=-1.0),
        lambda events: events[5].update(extra=1),
        lambda events: events[5].update(ts=1e9),
        lambda events: events[1]["args"].update(name="rank 7"),
        lambda events: events[5].update(ts=float("nan")),
        lambda events: events.pop(),
    ],
)
def test_the_check_sees_faults(change):
    """A trace with one thing wrong does not pass."""
    content = json.loads(chrome_trace(MEASURED, title="t", program=TWO_RANKS))
    change(content["traceEvents"])

    with pytest.raises((AssertionError, ZeroDivisionError)):
        check_trace(json.dumps(content), 2)
