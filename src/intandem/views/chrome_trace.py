"""A step as a Chrome trace: what ui.perfetto.dev, chrome://tracing and similar tools open.

https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU: complete events
(``X``) on one thread per rank, counters (``C``) of what each rank holds. Events of a thread may not
overlap, so an action that ran together with another is on a second thread of its rank.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from intandem.views.colors import LOOKS
from intandem.views.passes import groups, passes_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from intandem.ir import Span, Timeline
    from intandem.views.passes import Passes
    from intandem.views.report import StepFunction

Event = dict[str, Any]


def chrome_trace(
    timeline: Timeline, *, title: str, activations: Sequence[StepFunction] = ()
) -> str:
    """Return ``timeline`` as JSON, in microseconds since its start.

    Args:
        timeline: simulated or measured.
        title: name of the process that the ranks are shown under.
        activations: by rank, the stage activations held over time, on the timeline's clock.
    """
    rows = [groups(timeline.of_rank(rank)) for rank in range(timeline.num_ranks)]
    num_lanes = max((len(group) for row in rows for group in row), default=1)
    passes = passes_of(timeline)
    events = [_metadata("process_name", 0, name=title)]
    for rank, row in enumerate(rows):
        events += _threads(rank, num_lanes)
        for group in row:
            for lane, span in enumerate(group):
                events.append(_complete(span, rank * num_lanes + lane, timeline.start_s, passes))
    for rank, curve in enumerate(activations):
        events += _counters(rank, curve, timeline.start_s)
    content = {"traceEvents": events, "displayTimeUnit": "ms"}
    return json.dumps(content, separators=(",", ":")) + "\n"


def _threads(rank: int, num_lanes: int) -> Iterator[Event]:
    for lane in range(num_lanes):
        thread = rank * num_lanes + lane
        name = f"rank {rank}" if lane == 0 else f"rank {rank}, at the same time"
        yield _metadata("thread_name", thread, name=name)
        yield _metadata("thread_sort_index", thread, sort_index=thread)


def _metadata(key: str, thread: int, **arguments: object) -> Event:
    return {"name": key, "ph": "M", "pid": 0, "tid": thread, "args": arguments}


def _complete(span: Span, thread: int, start_s: float, passes: Passes) -> Event:
    action = span.action
    return {
        "name": str(action),
        "cat": LOOKS[action.kind].name,
        "ph": "X",
        "ts": _microseconds(span.start_s - start_s),
        "dur": _microseconds(span.end_s - span.start_s),
        "pid": 0,
        "tid": thread,
        "args": {
            "kind": str(action.kind),
            "stage": action.stage,
            "microbatch": action.microbatch,
            "replica": passes.replica(span),
        },
    }


def _counters(rank: int, curve: StepFunction, start_s: float) -> Iterator[Event]:
    for time_s, held in curve:
        at = {"ts": _microseconds(time_s - start_s), "pid": 0}
        name = f"activations of rank {rank}"
        yield {"name": name, "ph": "C", **at, "args": {"held": held}}


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 3)
