"""A step on the clock, for a terminal: a row per rank, time to the right.

1F1B of two ranks and three micro-batches, B twice as long as F::

    rank 0  F0 F1 ......B0--- F2 B1--- ...B2---
    rank 1  ...F0 B0--- F1 B1--- F2 B2--- ......
            0 s            5 s            10 s

A dot is idle time; a dash is an action that goes on. What does not fit a line goes on below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from intandem.views import units

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from intandem.ir import Span, Timeline

MOST_BANDS = 4
"""Lines per rank, before labels are given up to show the step in one."""

_ANSI = {"F": "97;44", "B": "30;42", "I": "30;46", "W": "30;43"}


@dataclass(frozen=True, slots=True)
class _Scale:
    """Seconds to columns, in bands of ``columns``."""

    start_s: float
    length_s: float
    columns_per_s: float
    columns: int

    @property
    def num_columns(self) -> int:
        return max(1, round(self.length_s * self.columns_per_s))

    def column(self, time_s: float) -> int:
        return round((time_s - self.start_s) * self.columns_per_s)

    def bands(self) -> Iterator[range]:
        for first in range(0, self.num_columns, self.columns):
            yield range(first, min(first + self.columns, self.num_columns))


def timeline_text(timeline: Timeline, *, columns: int = 100) -> str:
    """Draw ``timeline`` in at most ``columns`` columns, without colour.

    Labels are kind and micro-batch, with the stage in front if a rank has several.

    Raises:
        ValueError: if ``columns`` is less than 40.
    """
    return _draw(timeline, columns, lambda _, text: text)


def timeline_ansi(timeline: Timeline, *, columns: int = 100) -> str:
    """Draw as ``timeline_text`` does, with the colours of a terminal."""
    return _draw(timeline, columns, lambda kind, text: f"\x1b[{_ANSI[kind]}m{text}\x1b[0m")


def _draw(timeline: Timeline, columns: int, paint: Callable[[str, str], str]) -> str:
    if columns < 40:
        msg = f"{columns} columns are too few for a drawing; expected at least 40"
        raise ValueError(msg)
    margin = len(f"rank {timeline.num_ranks - 1}  ")
    labels = _labels(timeline)
    scale = _scale(timeline, labels, columns - margin)
    rows = [
        [(scale.column(s.start_s), scale.column(s.end_s), s) for s in timeline.of_rank(rank)]
        for rank in range(timeline.num_ranks)
    ]
    bands = []
    for band in scale.bands():
        lines = [
            f"rank {rank}".ljust(margin) + _line(row, band, labels, paint)
            for rank, row in enumerate(rows)
        ]
        bands.append("\n".join([*lines, " " * margin + _axis(scale, band)]))
    return "\n\n".join(bands)


def _labels(timeline: Timeline) -> dict[Span, str]:
    stages = {(span.rank, span.action.stage) for span in timeline.spans}
    if len(stages) > len({rank for rank, _ in stages}):
        return {span: str(span.action) for span in timeline.spans}
    return {span: f"{span.action.kind}{span.action.microbatch}" for span in timeline.spans}


def _scale(timeline: Timeline, labels: dict[Span, str], columns: int) -> _Scale:
    """Room for every label if that takes few enough bands, else all in one band."""
    length_s = timeline.makespan_s
    per_s = (max(map(len, labels.values()), default=1) + 1) / _shortest_s(timeline)
    num_columns = max(1, round(length_s * per_s))
    num_bands = math.ceil(num_columns / columns)
    if num_bands > MOST_BANDS:
        return _Scale(timeline.start_s, length_s, columns / length_s, columns)
    return _Scale(timeline.start_s, length_s, per_s, math.ceil(num_columns / num_bands))


def _shortest_s(timeline: Timeline) -> float:
    """Median seconds of the kind of action that has the shortest, not counting 0."""
    seconds: dict[str, list[float]] = {}
    for span in timeline.spans:
        if span.end_s > span.start_s:
            seconds.setdefault(span.action.kind, []).append(span.end_s - span.start_s)
    return min(map(median, seconds.values()), default=1.0)


def _line(
    row: Sequence[tuple[int, int, Span]],
    band: range,
    labels: dict[Span, str],
    paint: Callable[[str, str], str],
) -> str:
    out: list[str] = []
    at = band.start
    for start, end, span in row:
        first, last = max(start, at), min(end, band.stop)
        if first < last:
            cell = _cell(labels[span], end - start)[first - start : last - start]
            out += ["." * (first - at), paint(span.action.kind, cell)]
            at = last
    out.append("." * (band.stop - at))
    return "".join(out)


def _cell(label: str, width: int) -> str:
    """``width`` columns: the label if it fits, else the letter, and a gap after it if it fits."""
    if len(label) > width:
        label = label.lstrip("0123456789")[:1]
    return label if len(label) == width else label.ljust(width - 1, "-") + " "


def _axis(scale: _Scale, band: range) -> str:
    end_s = scale.num_columns / scale.columns_per_s
    out = ""
    for time_s in units.ticks(0, end_s, about=max(2, scale.num_columns // 16)):
        column = round(time_s * scale.columns_per_s) - band.start
        label = units.time_tick(time_s, end_s)
        if column == 0 or len(out) < column <= len(band) - len(label):
            out = out.ljust(column) + label
    return out
