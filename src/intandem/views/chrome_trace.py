"""A step as a Chrome trace: what ui.perfetto.dev, chrome://tracing and similar tools open.

https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU: complete events
(``X``) on one thread per rank, counters (``C``) of what each rank holds, and an arrow (``s`` to
``f``) for each message between ranks. Events of a thread may not overlap, so an action that ran
together with another is on a second thread of its rank. Process and threads count from 1, as
Perfetto keeps thread 0 for the idle task of a processor.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from intandem.ir import handovers
from intandem.views.colors import LOOKS
from intandem.views.passes import groups, passes_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from intandem.ir import Arrival, Program, Span, Timeline
    from intandem.views.passes import Passes
    from intandem.views.report import OptimizerSpan, StepFunction

Event = dict[str, Any]

PROCESS = 1
_TICK_US = 0.001
"""What times are rounded to; viewers count in nanoseconds."""


def chrome_trace(
    timeline: Timeline,
    *,
    title: str,
    program: Program | None = None,
    optimizer: Sequence[OptimizerSpan] = (),
    activations: Sequence[StepFunction] = (),
) -> str:
    """Return ``timeline`` as JSON, in microseconds since its start.

    Waits for messages are shown where the timeline has arrivals.

    Args:
        timeline: simulated or measured.
        title: name of the process that the ranks are shown under.
        program: that ran; its messages are the arrows.
        optimizer: updates, on the timeline's clock.
        activations: by rank, the stage activations held over time, on the timeline's clock.
    """
    rows = [groups(timeline.of_rank(rank)) for rank in range(timeline.num_ranks)]
    num_lanes = max((len(group) for row in rows for group in row), default=1)
    passes, start_s = passes_of(timeline), timeline.start_s
    slices = []
    lane_of: dict[tuple[int, str], int] = {}
    for rank, row in enumerate(rows):
        for group in row:
            for lane, span in enumerate(group):
                thread = lane_of[rank, str(span.action)] = _thread(rank, num_lanes, lane)
                slices.append(_action(span, thread, start_s, passes))
    slices += [_wait(*wait, _thread(wait[0], num_lanes), start_s) for wait in _waits(timeline)]
    for update in optimizer:
        times = (update.start_s - start_s, update.end_s - start_s)
        slices.append(_complete("optimizer", "optimizer", times, _thread(update.rank, num_lanes)))
    events = [_metadata("process_name", 0, name=title)]
    for rank in range(timeline.num_ranks):
        events += _threads(rank, num_lanes)
    events += sorted(slices, key=lambda event: (event["tid"], event["ts"]))
    events += [] if program is None else _arrows(timeline, program, lane_of)
    for rank, curve in enumerate(activations):
        events += _counters(rank, curve, start_s)
    content = {"traceEvents": events, "displayTimeUnit": "ms"}
    return json.dumps(content, separators=(",", ":")) + "\n"


def _thread(rank: int, num_lanes: int, lane: int = 0) -> int:
    return 1 + rank * num_lanes + lane


def _threads(rank: int, num_lanes: int) -> Iterator[Event]:
    for lane in range(num_lanes):
        thread = _thread(rank, num_lanes, lane)
        name = f"rank {rank}" if lane == 0 else f"rank {rank}, at the same time"
        yield _metadata("thread_name", thread, name=name)
        yield _metadata("thread_sort_index", thread, sort_index=thread)


def _metadata(key: str, thread: int, **arguments: object) -> Event:
    return {"name": key, "ph": "M", "pid": PROCESS, "tid": thread, "args": arguments}


def _action(span: Span, thread: int, start_s: float, passes: Passes) -> Event:
    action = span.action
    times = (span.start_s - start_s, span.end_s - start_s)
    arguments = {
        "kind": str(action.kind),
        "stage": action.stage,
        "microbatch": action.microbatch,
        "replica": passes.replica(span),
    }
    return _complete(str(action), LOOKS[action.kind].name, times, thread, **arguments)


def _complete(
    name: str, category: str, times: tuple[float, float], thread: int, **arguments: object
) -> Event:
    """An event with a duration. Its end is rounded, not its duration, so that none overlap."""
    start, end = map(_microseconds, times)
    return {
        "name": name,
        "cat": category,
        "ph": "X",
        "ts": start,
        "dur": round(end - start, 3),
        "pid": PROCESS,
        "tid": thread,
        "args": arguments,
    }


def _waits(timeline: Timeline) -> Iterator[tuple[int, str, float, float]]:
    """Rank, message, start and end of each wait: from when the rank was free to the arrival."""
    arrivals: dict[int, list[Arrival]] = {}
    for arrival in timeline.arrivals:
        arrivals.setdefault(arrival.rank, []).append(arrival)
    for rank, received in sorted(arrivals.items()):
        spans = timeline.of_rank(rank)
        free_s, place = timeline.start_s, 0
        for arrival in received:
            while place < len(spans) and spans[place].start_s < arrival.time_s:
                free_s = max(free_s, spans[place].end_s)
                place += 1
            if arrival.time_s > free_s:
                yield rank, str(arrival.message), free_s, arrival.time_s
                free_s = arrival.time_s


def _wait(
    rank: int, message: str, begun_s: float, end_s: float, thread: int, start_s: float
) -> Event:
    del rank
    return _complete(f"wait {message}", "wait", (begun_s - start_s, end_s - start_s), thread)


def _arrows(
    timeline: Timeline, program: Program, lane_of: dict[tuple[int, str], int]
) -> Iterator[Event]:
    """From within the action that makes a message to the start of the one that needs it."""
    spans = {(span.rank, span.action): span for span in timeline.spans}
    for number, found in enumerate(handovers(program)):
        source = spans.get((found.source_rank, found.message.source))
        target = spans.get((found.target_rank, found.target))
        if source is None or target is None:
            continue
        same = {"name": str(found.message), "cat": "message", "id": number + 1, "pid": PROCESS}
        start = _microseconds(source.start_s - timeline.start_s)
        end = _microseconds(source.end_s - timeline.start_s)
        sent = max(start, round(end - _TICK_US, 3))  # still inside: a slice ends before its end
        here = _microseconds(target.start_s - timeline.start_s)
        thread = lane_of[source.rank, str(source.action)]
        yield {**same, "ph": "s", "ts": sent, "tid": thread}
        thread = lane_of[target.rank, str(target.action)]
        yield {**same, "ph": "f", "bp": "e", "ts": here, "tid": thread}


def _counters(rank: int, curve: StepFunction, start_s: float) -> Iterator[Event]:
    for time_s, held in curve:
        at = {"ts": _microseconds(time_s - start_s), "pid": PROCESS}
        name = f"activations of rank {rank}"
        yield {"name": name, "ph": "C", **at, "args": {"held": held}}


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 3)
