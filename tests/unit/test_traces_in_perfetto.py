"""Traces as Perfetto reads them: rows, events and arrows, by its own trace processor."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import intandem as it
from intandem.costs import CostModel
from intandem.ir import handovers
from intandem.lowering import lower
from intandem.schedules import build_schedule, schedule_names
from intandem.simulator import activations, simulate
from intandem.views.chrome_trace import chrome_trace
from perfetto_engine import opened, problems

EVENTS = """
    SELECT thread.name AS row, slice.name AS name, slice.category AS kind FROM slice
    JOIN thread_track ON thread_track.id = slice.track_id JOIN thread USING (utid)
"""
ARROWS = """
    SELECT source.name AS source, t1.name AS sender, target.name AS target, t2.name AS receiver
    FROM flow
    JOIN slice source ON source.id = flow.slice_out JOIN slice target ON target.id = flow.slice_in
    JOIN thread_track k1 ON k1.id = source.track_id JOIN thread t1 ON t1.utid = k1.utid
    JOIN thread_track k2 ON k2.id = target.track_id JOIN thread t2 ON t2.utid = k2.utid
"""
BESIDE = ", at the same time"
"""Of the second row of a rank that does two actions at a time."""


def sent(order):
    """The arrow of every message: its two actions, and the rows that they are on."""
    return sorted(
        (str(h.message.source), f"rank {h.source_rank}", str(h.target), f"rank {h.target_rank}")
        for h in handovers(order)
    )


def arrows(rows):
    """The same, as Perfetto understands it."""
    return sorted(tuple(v.removesuffix(BESIDE) for v in row.values()) for row in rows(ARROWS))


def actions(rows):
    """Rank and text of every action, as Perfetto understands it."""
    found = [event for event in rows(EVENTS) if event["kind"] != "wait"]
    return sorted((event["row"].removesuffix(BESIDE), event["name"]) for event in found)


def expected(spans):
    """The same, of what ran."""
    return sorted((f"rank {span.rank}", str(span.action)) for span in spans)


@pytest.mark.parametrize("name", [n for n in schedule_names() if n != "chimera"])
def test_every_schedule(name):
    """A row per rank with its actions, an arrow per message between its two; nothing in doubt."""
    order = lower(build_schedule(name, num_ranks=4, num_microbatches=8))
    found = simulate(order, CostModel.uniform(order.placement.num_stages, 1e-3, 1e-3, 1e-3))

    with opened(
        chrome_trace(found, title=name, program=order, activations=activations(found))
    ) as rows:
        assert problems(rows) == {}
        assert actions(rows) == expected(found.spans)
        assert arrows(rows) == sent(order)


def test_a_step_that_ran(tmp_path):
    """With its waits."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4)])
    x = torch.randn(8, 8)
    with it.Pipeline(model, example=x, loss=F.mse_loss, ranks=2, microbatches=4) as pipe:
        pipe.step(x)
        path, found, order = pipe.trace(tmp_path / "t.json"), pipe.timeline(), pipe.program()

    with opened(path.read_text()) as rows:
        assert problems(rows) == {}
        assert actions(rows) == expected(found.spans)
        assert arrows(rows) == sent(order)


def test_events_that_overlap_on_a_row_are_a_problem():
    """What the other tests find none of is found where there is one."""
    event = {"ph": "X", "name": "0F0", "cat": "F", "dur": 5, "pid": 1, "tid": 1}

    with opened(json.dumps({"traceEvents": [{**event, "ts": 10}, {**event, "ts": 12}]})) as rows:
        assert problems(rows) == {"slice_drop_overlapping_complete_event": 1}
