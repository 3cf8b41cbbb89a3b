"""A step on the clock as an SVG: a row per rank, a box per action.

Boxes say what they are by letter and number as well as by colour. Several timelines drawn with
the same ``Clock`` line up.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from intandem.views import units

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from intandem.ir import Span, Timeline
    from intandem.views.report import OptimizerSpan, StepFunction

WIDTH = 1200
"""Of every drawing, in user units: pixels, unless the page scales it."""
LEFT, RIGHT = 62, 84
"""Room for the rank's name and for the number at the end of its row."""
ROW, GAP = 28, 4
AXIS = 22


@dataclass(frozen=True, slots=True)
class Clock:
    """Maps seconds since the step began to x.

    Attributes:
        length_s: time at the right edge of the plot.
    """

    length_s: float

    def x(self, time_s: float) -> float:
        """Return the x of ``time_s``."""
        return LEFT + self.width(time_s)

    def width(self, seconds: float) -> float:
        """Return how wide ``seconds`` are."""
        return (WIDTH - LEFT - RIGHT) * seconds / self.length_s if self.length_s > 0 else 0.0


def timeline_svg(
    timeline: Timeline,
    clock: Clock,
    *,
    name: str,
    optimizer: Sequence[OptimizerSpan] = (),
) -> str:
    """Draw ``timeline`` from its own start.

    Args:
        timeline: planned or measured.
        clock: shared with the drawings this one is to line up with.
        name: ``planned`` or ``measured``; starts the boxes' ids, as in ``measured-1F3``.
        optimizer: updates to draw along, on the timeline's clock.
    """
    height = timeline.num_ranks * (ROW + GAP) + AXIS
    label = f"{name} timeline, one row per rank"
    stage_index = _stage_index(timeline)
    parts = [
        f'<svg class="timeline" {_frame(height)} role="group" aria-label="{label}">',
        *_grid(clock, height),
        *_rows(timeline, clock),
        *(_box(s, clock, name, timeline.start_s, stage_index) for s in timeline.spans),
        *(_update(span, clock, timeline.start_s) for span in optimizer),
        "</svg>",
    ]
    return "\n".join(parts)


def activations_svg(
    curves: Mapping[str, Sequence[StepFunction]], clock: Clock, *, start_s: Mapping[str, float]
) -> str:
    """Draw how many micro-batches each rank holds over time, planned and measured in one row.

    Args:
        curves: by name, a step function for each rank.
        clock: shared with the timelines.
        start_s: by name, when its timeline starts.
    """
    num_ranks = max(map(len, curves.values()))
    peak = max((_peak(curve) for ranks in curves.values() for curve in ranks), default=0)
    height = num_ranks * (ROW + GAP) + AXIS
    parts = [
        f'<svg class="activations" {_frame(height)} role="img" '
        'aria-label="micro-batches held on each rank over time">',
        *_grid(clock, height),
    ]
    for rank in range(num_ranks):
        peaks = []
        for name, ranks in curves.items():
            if rank < len(ranks):
                points = [(time_s - start_s[name], held) for time_s, held in ranks[rank]]
                parts.append(_steps(points, clock, rank, peak, name))
                peaks.append(_peak(ranks[rank]))
        parts += _row_labels(rank, "peak " + " / ".join(map(str, peaks)))
    return "\n".join([*parts, "</svg>"])


def _frame(height: float) -> str:
    return f'viewBox="0 0 {WIDTH} {height}" data-left="{LEFT}" data-right="{RIGHT}"'


def _grid(clock: Clock, height: float) -> Iterator[str]:
    """Ticks of the time axis, with lines through all rows."""
    for time_s in units.ticks(0, clock.length_s, about=10):
        x = f"{clock.x(time_s):.1f}"
        yield f'<line class="grid" x1="{x}" x2="{x}" y1="0" y2="{height - AXIS + 2}"/>'
        label = units.time_tick(time_s, clock.length_s)
        yield f'<text class="tick" x="{x}" y="{height - 6}">{label}</text>'


def _rows(timeline: Timeline, clock: Clock) -> Iterator[str]:
    """Each rank's name, its idle time as a pale bar, and its idle share."""
    width = f"{clock.width(timeline.makespan_s):.2f}"
    for rank in range(timeline.num_ranks):
        y = rank * (ROW + GAP)
        yield f'<rect class="idle" x="{LEFT}" y="{y}" width="{width}" height="{ROW}"/>'
        busy_s = sum(span.end_s - span.start_s for span in timeline.of_rank(rank))
        idle = 1 - busy_s / timeline.makespan_s if timeline.makespan_s else 0.0
        yield from _row_labels(rank, f"idle {units.share(idle)}")


def _row_labels(rank: int, right: str) -> Iterator[str]:
    y = rank * (ROW + GAP) + ROW / 2 + 4
    yield f'<text class="rank" x="{LEFT - 10}" y="{y}">rank {rank}</text>'
    yield f'<text class="figure" x="{WIDTH - RIGHT + 8}" y="{y}">{right}</text>'


def _stage_index(timeline: Timeline) -> dict[int, int]:
    """For each stage, how many of its rank's stages come before it."""
    stages = sorted({(span.rank, span.action.stage) for span in timeline.spans})
    ranks = [rank for rank, _ in stages]
    return {stage: place - ranks.index(rank) for place, (rank, stage) in enumerate(stages)}


def _box(
    span: Span, clock: Clock, name: str, start_s: float, stage_index: Mapping[int, int]
) -> str:
    """One action: rectangle, label as far as it fits, and what it says when pointed at."""
    action = span.action
    x, y = clock.x(span.start_s - start_s), span.rank * (ROW + GAP)
    width = max(clock.width(span.end_s - span.start_s), 0.5)
    later = ' class="later"' if stage_index[action.stage] else ""
    tip = (
        f"{name} {action}: rank {span.rank}, stage {action.stage}, micro-batch "
        f"{action.microbatch}; starts {units.duration(span.start_s - start_s)}, "
        f"takes {units.duration(span.end_s - span.start_s)}"
    )
    return (
        f'<g class="box {action.kind}" id="{name}-{action}" data-mb="{action.microbatch}" '
        f'data-rank="{span.rank}" role="img" tabindex="-1" aria-label="{tip}">'
        f"<title>{tip}</title>"
        f'<rect{later} x="{x:.2f}" y="{y}" width="{width:.2f}" height="{ROW}"/>'
        f"{_label(str(action.kind), str(action.microbatch), x + width / 2, y, width)}</g>"
    )


def _label(letter: str, number: str, x: float, y: float, width: float) -> str:
    """Letter and number beside one another, one above the other, or as much as there is room.

    What has no room is there as well, for a page to show once it is zoomed.
    """
    if width >= 8 + 7 * len(letter + number):
        return f'<text x="{x:.1f}" y="{y + ROW / 2 + 4}">{letter}{number}</text>'
    if width >= 1 + 5 * len(number):
        upper = f'<text class="small" x="{x:.1f}" y="{y + 12}">{letter}</text>'
        return upper + f'<text class="small" x="{x:.1f}" y="{y + 23}">{number}</text>'
    upper = f'<text class="tiny" x="{x:.2f}" y="{y + 12}">{letter}</text>'
    both = upper + f'<text class="tiny" x="{x:.2f}" y="{y + 23}">{number}</text>'
    if width < 7:
        return both
    return f'<text class="small alone" x="{x:.1f}" y="{y + ROW / 2 + 4}">{letter}</text>{both}'


def _update(span: OptimizerSpan, clock: Clock, start_s: float) -> str:
    x, y = clock.x(span.start_s - start_s), span.rank * (ROW + GAP)
    width = max(clock.width(span.end_s - span.start_s), 0.5)
    tip = f"optimizer: rank {span.rank}; takes {units.duration(span.end_s - span.start_s)}"
    return (
        f'<g class="box O" data-rank="{span.rank}" role="img" tabindex="-1" aria-label="{tip}">'
        f'<title>{tip}</title><rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{ROW}"/>'
        f"{_label('O', '', x + width / 2, y, width)}</g>"
    )


def _steps(
    points: Sequence[tuple[float, int]], clock: Clock, rank: int, peak: int, name: str
) -> str:
    """A step function as a path; a closed one, so that it can be filled."""
    base = rank * (ROW + GAP) + ROW
    path = [f"M{LEFT} {base}"]
    for time_s, held in _settled(points, 0.5 / clock.width(1.0)):
        path.append(f"H{clock.x(time_s):.2f}V{base - (ROW - 2) * held / max(peak, 1):.2f}")
    return f'<path class="held {escape(name)}" d="{"".join(path)}"/>'


def _settled(points: Sequence[tuple[float, int]], within_s: float) -> Iterator[tuple[float, int]]:
    """Of points too close together to be seen apart, the last one."""
    for point, following in zip(points, [*points[1:], None], strict=True):
        if following is None or following[0] - point[0] > within_s:
            yield point


def _peak(curve: StepFunction) -> int:
    return max((held for _, held in curve), default=0)
