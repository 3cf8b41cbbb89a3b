"""A step on the clock, for a terminal: a row per rank, time to the right.

1F1B of two ranks and three micro-batches, B twice as long as F::

    rank 0  F0 F1 ......B0--- F2 B1--- ...B2---
    rank 1  ...F0 B0--- F1 B1--- F2 B2--- ......
            0 s            5 s            10 s

A dot is idle time; a dash is an action that goes on; an ampersand stands between two actions that
ran together, ``0F5-&7B0- ``. What does not fit a line goes on below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby
from statistics import median
from typing import TYPE_CHECKING

from intandem.views import units
from intandem.views.passes import groups, passes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from intandem.ir import Timeline

MOST_BANDS = 4
"""Lines per rank, before labels are given up to show the step in one."""

_PALETTE = {
    "F": ("15;48;5;25", "15;48;5;18", "16;48;5;74", "15;48;5;17"),
    "B": ("16;48;5;35", "15;48;5;22", "16;48;5;115", "15;48;5;23"),
    "I": ("16;48;5;176", "15;48;5;96", "16;48;5;225", "15;48;5;53"),
    "W": ("16;48;5;214", "15;48;5;130", "16;48;5;223", "15;48;5;94"),
}
"""By kind and pass: letters and ground, of the 256 colours that terminals have."""

_Style = tuple[str, int]
"""Kind and pass of a piece of text."""


@dataclass(frozen=True, slots=True)
class _Part:
    """One action of a cell."""

    label: str
    style: _Style


@dataclass(frozen=True, slots=True)
class _Cell:
    """An action, or several that ran together."""

    start_s: float
    end_s: float
    parts: tuple[_Part, ...]

    @property
    def length_s(self) -> float:
        return self.end_s - self.start_s

    @property
    def num_columns(self) -> int:
        """Columns that all labels need, each with one after it."""
        return sum(len(part.label) + 1 for part in self.parts)

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(part.style[0] for part in self.parts)

    def relabelled(self, shorten: Callable[[str], str]) -> _Cell:
        parts = tuple(_Part(shorten(part.label), part.style) for part in self.parts)
        return _Cell(self.start_s, self.end_s, parts)

    def text(self, width: int) -> list[tuple[str, _Style]]:
        """``width`` characters, each with its style."""
        found: list[tuple[str, _Style]] = []
        for index, part in enumerate(self.parts):
            left = len(self.parts) - index
            room = (width - len(found)) // left
            text = _fitted(part.label, room, " " if left == 1 else "&")
            found += [(character, part.style) for character in text]
        return found


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


def timeline_text(timeline: Timeline, *, columns: int = 100, length_s: float | None = None) -> str:
    """Draw ``timeline`` in at most ``columns`` columns, without colour.

    Labels are kind and micro-batch, with the stage in front if a rank has several.

    Args:
        timeline: simulated or measured.
        columns: at least 40.
        length_s: if given, that many seconds are drawn as wide as ``columns``, so that drawings of
            several timelines line up.

    Raises:
        ValueError: if ``columns`` is less than 40.
    """
    return _draw(timeline, columns, length_s, lambda _, text: text)


def timeline_ansi(timeline: Timeline, *, columns: int = 100, length_s: float | None = None) -> str:
    """Draw as ``timeline_text`` does, with the colours of a terminal; a shade for each pass."""
    return _draw(timeline, columns, length_s, _colored)


def legend_ansi(timeline: Timeline) -> str:
    """Say in one line, in its colours, what the colours of ``timeline_ansi`` stand for."""
    passes = passes_of(timeline)
    kinds = {str(span.action.kind) for span in timeline.spans}
    words = [_colored((kind, 0), f" {kind} ") for kind in _PALETTE if kind in kinds]
    if passes.num_passes > 1:
        kind = next(kind for kind in _PALETTE if kind in kinds)
        shades = "".join(
            _colored((kind, index), f" {kind} ")
            for index in range(min(passes.num_passes, len(_PALETTE[kind])))
        )
        words.append(f"{shades} {' or '.join(passes.meanings)}")
    return "  ".join(words)


def _colored(style: _Style, text: str) -> str:
    kind, index = style
    colors = _PALETTE[kind]
    return f"\x1b[38;5;{colors[min(index, len(colors) - 1)]}m{text}\x1b[0m"


def _draw(
    timeline: Timeline,
    columns: int,
    length_s: float | None,
    paint: Callable[[_Style, str], str],
) -> str:
    if columns < 40:
        msg = f"{columns} columns are too few for a drawing; expected at least 40"
        raise ValueError(msg)
    margin = len(f"rank {timeline.num_ranks - 1}  ")
    rows = _cells(timeline)
    room = columns - margin
    if length_s is None:
        scale = _scale(timeline, _columns_per_s(rows), room)
    else:
        per_s = room / length_s if length_s > 0 else 1.0
        scale = _Scale(timeline.start_s, length_s, per_s, room)
        rows = _shortened(rows, scale)
    bands = []
    for band in scale.bands():
        lines = [
            f"rank {rank}".ljust(margin) + _line(row, scale, band, paint)
            for rank, row in enumerate(rows)
        ]
        bands.append("\n".join([*lines, " " * margin + _axis(scale, band)]))
    return "\n\n".join(bands)


def _cells(timeline: Timeline) -> list[list[_Cell]]:
    """Each rank's cells; the stage is part of the label where a rank has several."""
    passes = passes_of(timeline)
    several = passes.num_passes > 1
    rows: list[list[_Cell]] = []
    for rank in range(timeline.num_ranks):
        row = []
        for group in groups(timeline.of_rank(rank)):
            parts = tuple(
                _Part(
                    str(span.action) if several else f"{span.action.kind}{span.action.microbatch}",
                    (str(span.action.kind), passes.index(span)),
                )
                for span in group
            )
            row.append(_Cell(group[0].start_s, max(span.end_s for span in group), parts))
        rows.append(row)
    return rows


def _scale(timeline: Timeline, per_s: float, columns: int) -> _Scale:
    """Room for every label if that takes few enough bands, else all in one band."""
    length_s = timeline.makespan_s
    num_columns = max(1, round(length_s * per_s))
    num_bands = math.ceil(num_columns / columns)
    if num_bands > MOST_BANDS:
        return _Scale(timeline.start_s, length_s, columns / length_s, columns)
    return _Scale(timeline.start_s, length_s, per_s, math.ceil(num_columns / num_bands))


def _shortened(rows: list[list[_Cell]], scale: _Scale) -> list[list[_Cell]]:
    """Shorten the labels of each kind of cell alike, to what has room in the usual one."""
    usual = {
        kinds: int(median(cell.length_s for cell in same) * scale.columns_per_s)
        for kinds, same in _by_kinds(rows).items()
    }
    for shorten in (_without_stage, _letter):
        tight = {
            kinds
            for kinds, same in _by_kinds(rows).items()
            if max(cell.num_columns for cell in same) > usual[kinds]
        }
        rows = [
            [cell.relabelled(shorten) if cell.kinds in tight else cell for cell in row]
            for row in rows
        ]
    return rows


def _by_kinds(rows: Sequence[Sequence[_Cell]]) -> dict[tuple[str, ...], list[_Cell]]:
    """Cells that take time, by the kinds of their actions."""
    found: dict[tuple[str, ...], list[_Cell]] = {}
    for row in rows:
        for cell in row:
            if cell.length_s > 0:
                found.setdefault(cell.kinds, []).append(cell)
    return found


def _columns_per_s(rows: Sequence[Sequence[_Cell]]) -> float:
    """What the longest label of each kind of cell needs, in the median time of that kind."""
    return max(
        (
            max(cell.num_columns for cell in same) / median(cell.length_s for cell in same)
            for same in _by_kinds(rows).values()
        ),
        default=2.0,
    )


def _without_stage(label: str) -> str:
    return label.lstrip("0123456789")


def _letter(label: str) -> str:
    return _without_stage(label)[:1]


def _line(
    row: Sequence[_Cell], scale: _Scale, band: range, paint: Callable[[_Style, str], str]
) -> str:
    out: list[str] = []
    at = band.start
    for cell in row:
        start, end = scale.column(cell.start_s), scale.column(cell.end_s)
        first, last = max(start, at), min(end, band.stop)
        if first < last:
            out.append("." * (first - at))
            text = cell.text(end - start)[first - start : last - start]
            for style, characters in groupby(text, key=lambda pair: pair[1]):
                out.append(paint(style, "".join(character for character, _ in characters)))
            at = last
    out.append("." * (band.stop - at))
    return "".join(out)


def _fitted(label: str, width: int, gap: str) -> str:
    """``width`` columns: the label, or as much of it as fits, and ``gap`` after it if it fits.

    Without room, the stage is left out first, then the micro-batch.
    """
    for shorten in (_without_stage, _letter):
        if len(label) > width:
            label = shorten(label)
    return label[:width] if len(label) >= width else label.ljust(width - 1, "-") + gap


def _axis(scale: _Scale, band: range) -> str:
    end_s = scale.num_columns / scale.columns_per_s
    out = ""
    for time_s in units.ticks(0, end_s, about=max(2, scale.num_columns // 16)):
        column = round(time_s * scale.columns_per_s) - band.start
        label = units.time_tick(time_s, end_s)
        if column == 0 or len(out) < column <= len(band) - len(label):
            out = out.ljust(column) + label
    return out
