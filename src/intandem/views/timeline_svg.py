"""A step on the clock as an SVG: a row per rank, a box per action.

Boxes say what they are by letter and number as well as by colour. A rank's later stages, and those
of another replica, are darker; actions that ran together share the height of their row. Several
timelines drawn with the same ``Clock`` line up.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from intandem.views import units
from intandem.views.boxes_svg import Boxes
from intandem.views.clock import AXIS, LEFT, RIGHT, WIDTH, Clock
from intandem.views.passes import groups, passes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from intandem.ir import Span, Timeline
    from intandem.ir.analysis import PathStep
    from intandem.views.report import OptimizerSpan, StepFunction

    Rows = list[list[tuple[Span, ...]]]

MOST_LETTERS = 12
"""That there is room for beside a row."""


def timeline_svg(
    timeline: Timeline,
    clock: Clock,
    *,
    name: str,
    optimizer: Sequence[OptimizerSpan] = (),
    path: Sequence[PathStep] = (),
) -> str:
    """Draw ``timeline`` from its own start.

    Args:
        timeline: planned or measured.
        clock: shared with the drawings this one is to line up with.
        name: ``planned`` or ``measured``; starts the boxes' ids, as in ``measured-1F3``.
        optimizer: updates to draw along, on the timeline's clock.
        path: the critical path, to be marked.
    """
    marked = frozenset((step.span.rank, step.span.action) for step in path)
    boxes = Boxes(clock, timeline.start_s, name, passes_of(timeline), marked)
    rows = _groups(timeline)
    head = f'role="group" aria-label="{name} timeline, one row per rank">'
    return "\n".join(
        [
            f'<svg class="timeline" {_frame(clock.height(timeline.num_ranks))} {head}',
            *_background(rows, clock, timeline.makespan_s),
            *(box for row in rows for group in row for box in boxes.of_group(group)),
            *(boxes.of_update(update) for update in optimizer),
            "</svg>",
        ]
    )


def picture_svg(timeline: Timeline, clock: Clock) -> str:
    """Draw what ``timeline_svg`` draws, without ids and descriptions: a third of the bytes."""
    boxes = Boxes(clock, timeline.start_s, "", passes_of(timeline))
    rows = _groups(timeline)
    return "\n".join(
        [
            f"<svg {_frame(clock.height(timeline.num_ranks))}>",
            *_background(rows, clock, timeline.makespan_s),
            *(box for row in rows for group in row for box in boxes.picture(group)),
            "</svg>",
        ]
    )


def activations_svg(
    curves: Mapping[str, Sequence[StepFunction]],
    clock: Clock,
    *,
    start_s: Mapping[str, float],
    write: Callable[[int], str] = str,
) -> str:
    """Draw what each rank holds over time, planned and measured in one row.

    Args:
        curves: by name, a step function for each rank.
        clock: shared with the timelines.
        start_s: by name, when its timeline starts.
        write: a peak as text.
    """
    num_ranks = max(map(len, curves.values()))
    peak = max((_peak(curve) for ranks in curves.values() for curve in ranks), default=0)
    height = clock.height(num_ranks)
    parts = [
        f'<svg class="activations" {_frame(height)} role="img" '
        'aria-label="activations held on each rank over time">',
        *_grid(clock, height),
    ]
    for rank in range(num_ranks):
        peaks = []
        for name, ranks in curves.items():
            if rank < len(ranks):
                points = [(time_s - start_s[name], held) for time_s, held in ranks[rank]]
                parts.append(_steps(points, clock, rank, peak, name))
                peaks.append(_peak(ranks[rank]))
        parts += _peak_labels(rank, [write(peak) for peak in peaks], clock)
    return "\n".join([*parts, "</svg>"])


def _groups(timeline: Timeline) -> Rows:
    by_rank: list[list[Span]] = [[] for _ in range(timeline.num_ranks)]
    for span in timeline.spans:
        by_rank[span.rank].append(span)
    return [groups(row) for row in by_rank]


def _frame(height: float) -> str:
    return f'viewBox="0 0 {WIDTH} {height}" data-left="{LEFT}" data-right="{RIGHT}"'


def _background(rows: Rows, clock: Clock, makespan_s: float) -> Iterator[str]:
    """Time axis; each rank's name, its idle time as a pale bar, and its idle share."""
    yield from _grid(clock, clock.height(len(rows)))
    width, height = f"{clock.width(min(makespan_s, clock.length_s)):.2f}", clock.row_height
    for rank, row in enumerate(rows):
        corner = f'x="{LEFT}" y="{clock.y(rank)}"'
        yield f'<rect class="idle" {corner} width="{width}" height="{height}"/>'
        busy_s = sum(max(span.end_s for span in group) - group[0].start_s for group in row)
        idle = max(1 - busy_s / makespan_s, 0.0) if makespan_s else 0.0
        yield from _row_labels(rank, f"idle {units.share(idle)}", clock)


def _grid(clock: Clock, height: float) -> Iterator[str]:
    """Ticks of the time axis, with lines through all rows."""
    for time_s in units.ticks(0, clock.length_s, about=10):
        x = f"{clock.x(time_s):.1f}"
        yield f'<line class="grid" x1="{x}" x2="{x}" y1="0" y2="{height - AXIS + 2}"/>'
        label = units.time_tick(time_s, clock.length_s)
        yield f'<text class="tick" x="{x}" y="{height - 6}">{label}</text>'


def _peak_labels(rank: int, peaks: Sequence[str], clock: Clock) -> Iterator[str]:
    """In one line if there is room for it, else a line for each."""
    if len(line := "peak " + " / ".join(peaks)) <= MOST_LETTERS:
        yield from _row_labels(rank, line, clock)
        return
    yield from _row_labels(rank, "", clock)
    for place, peak in enumerate(peaks):
        y = f"{clock.y(rank) + clock.row_height * (place + 0.5) / len(peaks) + 4:g}"
        text = f"/ {peak}" if place else peak
        yield f'<text class="figure" x="{WIDTH - RIGHT + 8}" y="{y}">{text}</text>'


def _row_labels(rank: int, right: str, clock: Clock) -> Iterator[str]:
    y = f"{clock.y(rank) + clock.row_height / 2 + 4:g}"
    yield f'<text class="rank" x="{LEFT - 10}" y="{y}">rank {rank}</text>'
    yield f'<text class="figure" x="{WIDTH - RIGHT + 8}" y="{y}">{right}</text>'


def _steps(
    points: Sequence[tuple[float, int]], clock: Clock, rank: int, peak: int, name: str
) -> str:
    """A step function as a path; a closed one, so that it can be filled."""
    base = clock.y(rank) + clock.row_height
    room = clock.row_height - 2
    path = [f"M{LEFT} {base}"]
    for time_s, held in _settled(points, clock.seconds(0.5)):
        path.append(f"H{clock.x(time_s):.2f}V{base - room * held / max(peak, 1):.2f}")
    return f'<path class="held {escape(name)}" d="{"".join(path)}"/>'


def _settled(points: Sequence[tuple[float, int]], within_s: float) -> Iterator[tuple[float, int]]:
    """Of points too close together to be seen apart, the last one."""
    for point, following in zip(points, [*points[1:], None], strict=True):
        if following is None or following[0] - point[0] > within_s:
            yield point


def _peak(curve: StepFunction) -> int:
    return max((held for _, held in curve), default=0)
