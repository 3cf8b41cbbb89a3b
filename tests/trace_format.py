"""A strict check of the Trace Event Format, as far as this project writes it.

``perfetto_engine`` asks Perfetto itself. What is checked here, for any viewer, is what a row per
rank and an arrow per message need: the fields of each phase and no others, times that go forward,
events of a thread that do not overlap, and arrows whose two ends are inside an event each.
"""

import json
import math
from itertools import pairwise

KEYS = {
    "M": {"name", "ph", "pid", "tid", "args"},
    "X": {"name", "cat", "ph", "ts", "dur", "pid", "tid", "args"},
    "C": {"name", "ph", "ts", "pid", "args"},
    "s": {"name", "cat", "ph", "id", "ts", "pid", "tid"},
    "f": {"name", "cat", "ph", "id", "bp", "ts", "pid", "tid"},
}
METADATA = {"process_name": "name", "thread_name": "name", "thread_sort_index": "sort_index"}
ROUNDING_US = 1e-6


def check_trace(text, num_ranks):
    """Return the events of ``text`` by phase; fails where it is no trace of ``num_ranks``."""
    content = json.loads(text, parse_constant=lambda name: 1 / 0)  # no NaN, no Infinity
    assert set(content) == {"traceEvents", "displayTimeUnit"}
    assert content["displayTimeUnit"] in {"ms", "ns"}
    events = {phase: [] for phase in KEYS}
    for event in content["traceEvents"]:
        _check_event(event)
        events[event["ph"]].append(event)
    _check_rows(events, num_ranks)
    slices = _check_slices(events["X"])
    _check_arrows(events["s"], events["f"], slices)
    _check_counters(events["C"])
    return events


def _check_event(event):
    assert set(event) == KEYS[event["ph"]], event
    assert isinstance(event["name"], str)
    assert event["name"]
    for key in {"pid", "tid", "id"} & set(event):
        assert type(event[key]) is int, event
    assert event["pid"] > 0  # process and thread 0 are the idle task
    for key in {"ts", "dur"} & set(event):
        assert isinstance(event[key], int | float)
        assert math.isfinite(event[key])
        assert event[key] >= 0, event
        assert event[key] == round(event[key], 3), event  # whole nanoseconds
    if event["ph"] == "M":
        assert set(event["args"]) == {METADATA[event["name"]]}
    elif event["ph"] != "C" and event["ph"] in "Xsf":
        assert event["tid"] > 0
        assert event["cat"]


def _check_rows(events, num_ranks):
    """One row for each rank, in order, and nothing on any other."""
    names = {e["tid"]: e["args"]["name"] for e in events["M"] if e["name"] == "thread_name"}
    order = {e["tid"]: e["args"]["sort_index"] for e in events["M"] if "sort_index" in e["args"]}
    assert [e["name"] for e in events["M"]].count("process_name") == 1
    assert set(order) == set(names)
    first = [names[thread] for thread in sorted(names, key=order.get) if "," not in names[thread]]
    assert first == [f"rank {rank}" for rank in range(num_ranks)]
    assert {e["tid"] for e in events["X"]} <= set(names)


def _check_slices(slices):
    """In order of time on each thread, none beginning before the last has ended."""
    by_thread = {}
    for event in slices:
        by_thread.setdefault(event["tid"], []).append(event)
    for row in by_thread.values():
        for before, after in pairwise(row):
            assert before["ts"] + before["dur"] <= after["ts"] + ROUNDING_US, (before, after)
    return by_thread


def _check_arrows(starts, ends, slices):
    """Each start has one end of the same name, later, and both are on an event."""
    by_id = {event["id"]: event for event in starts}
    assert len(by_id) == len(starts) == len(ends)
    assert {event["id"] for event in ends} == set(by_id)
    for end in ends:
        start = by_id[end["id"]]
        assert (start["name"], start["cat"]) == (end["name"], end["cat"])
        assert start["ts"] <= end["ts"], (start, end)
        assert end["bp"] == "e"
        for event in (start, end):
            under = [s for s in slices[event["tid"]] if _encloses(s, event["ts"])]
            assert len(under) == 1, event
        source = next(s for s in slices[start["tid"]] if _encloses(s, start["ts"]))
        assert start["name"].startswith(f"{source['name']}>")
        target = next(s for s in slices[end["tid"]] if _encloses(s, end["ts"]))
        assert str(target["args"]["stage"]) == end["name"].partition(">")[2]


def _encloses(slice_, time):
    end = slice_["ts"] + slice_["dur"]
    return slice_["ts"] <= time < max(end - ROUNDING_US, slice_["ts"] + ROUNDING_US)


def _check_counters(counters):
    by_name = {}
    for event in counters:
        assert all(isinstance(value, int | float) for value in event["args"].values())
        by_name.setdefault(event["name"], []).append(event["ts"])
    for times in by_name.values():
        assert times == sorted(times)
