"""Unrolling: what a schedule of a few micro-batches repeats, repeated as often as needed.

In a row of lanes (micro-batches follow from counting), a **window** is a part with the same number
of operations of each of the rank's lanes. Repeating it adds that many micro-batches, and the memory
at its ends is the same, so that the peak stays as it is. One window per rank, all of the same
number of micro-batches and at about the same time, makes the schedule longer; that its ranks do not
wait for each other forever is seen by running it::

    0F 0F [0F 0B] 0F 0B 0B 0B        0F 0F [0F 0B] [0F 0B] 0F 0B 0B 0B
    1F 1B [1F 1B] 1F 1B 1F 1B   ->   1F 1B [1F 1B] [1F 1B] 1F 1B 1F 1B
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from intandem.planner.clock import run_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from intandem.planner.problem import Problem, Rows

_SHARES = (0.5, 0.4, 0.6, 0.3, 0.7, 0.45, 0.55, 0.35, 0.65)
"""Where windows are looked for, as shares of the makespan."""


def unroll(small: Problem, rows: Rows, large: Problem, lengths: Iterable[int]) -> Iterator[Rows]:
    """Yield rows of ``large`` that repeat a part of ``rows``, which belong to ``small``.

    The two problems differ in their numbers of micro-batches only. Rows that would wait for each
    other forever are among them.

    Args:
        small: what ``rows`` belong to.
        rows: rows that run.
        large: what is wanted.
        lengths: micro-batches per window to try; those that do not divide what is missing are
            left out.
    """
    run = run_rows(small, rows)
    if run is None:
        return
    missing = large.num_microbatches - small.num_microbatches
    lanes = [[operation // small.num_microbatches for operation in row] for row in rows]
    starts = [[run.end_s[o] - small.seconds[o] for o in row] for row in rows]
    seen = set()
    for length in lengths:
        if missing % length:
            continue
        windows = [_windows(row, length) for row in lanes]
        if any(not found and row for found, row in zip(windows, lanes, strict=True)):
            continue
        for share in _SHARES:
            begin_s = share * max(run.end_s)
            places = tuple(map(_nearest, windows, starts, [begin_s] * len(rows)))
            if (length, places) not in seen:
                seen.add((length, places))
                yield _repeated(large, lanes, places, (length, missing // length))


def _windows(lanes: Sequence[int], length: int) -> list[int]:
    """Places in ``lanes`` where a window of ``length`` micro-batches begins."""
    excess = dict.fromkeys(lanes, -length)
    size = length * len(excess)
    num_off = len(excess)
    found = []
    for index, lane in enumerate(lanes):
        num_off += (excess[lane] + 1 != 0) - (excess[lane] != 0)
        excess[lane] += 1
        if index >= size:
            gone = lanes[index - size]
            num_off += (excess[gone] - 1 != 0) - (excess[gone] != 0)
            excess[gone] -= 1
        if index >= size - 1 and num_off == 0:
            found.append(index - size + 1)
    return found


def _nearest(windows: Sequence[int], starts: Sequence[float], begin_s: float) -> int:
    if not windows:
        return 0
    at = bisect_left(windows, begin_s, key=starts.__getitem__)
    around = windows[max(0, at - 1) : at + 1]
    return min(around, key=lambda place: abs(starts[place] - begin_s))


def _repeated(
    large: Problem, lanes: Sequence[Sequence[int]], places: Sequence[int], times: tuple[int, int]
) -> Rows:
    length, num_more = times
    rows = []
    for row, place in zip(lanes, places, strict=True):
        end = place + length * len(set(row))
        rows.append(numbered(large, [*row[:end], *(list(row[place:end]) * num_more), *row[end:]]))
    return rows


def numbered(problem: Problem, lanes: Iterable[int]) -> list[int]:
    """Turn a row of lanes into one of operations: micro-batches in ascending order per lane."""
    count = problem.num_microbatches
    following: dict[int, int] = {}
    row = []
    for lane in lanes:
        operation = following.get(lane, lane * count)
        row.append(operation)
        following[lane] = operation + 1
    return row
