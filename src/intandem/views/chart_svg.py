"""A line chart as an SVG."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from intandem.views import units

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WIDTH, HEIGHT = 590, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 36

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Line:
    """One series: ``css_class`` says how it looks; ``marked`` draws a dot at each point."""

    name: str
    css_class: str
    points: Points
    marked: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """Maps data to the plot: x in [0, high_x], y in [low_y, high_y]."""

    high_x: float
    low_y: float
    high_y: float

    def x(self, value: float) -> float:
        """Return the x of ``value``."""
        return LEFT + (WIDTH - LEFT - RIGHT) * value / (self.high_x or 1.0)

    def y(self, value: float) -> float:
        """Return the y of ``value``; upwards is more."""
        height = HEIGHT - TOP - BOTTOM
        return TOP + height * (self.high_y - value) / (self.high_y - self.low_y or 1.0)


def chart_svg(
    lines: Sequence[Line],
    *,
    label: str,
    from_zero: bool = False,
    reference: tuple[str, float] | None = None,
) -> str:
    """Draw ``lines`` over steps.

    Args:
        lines: at least one of them with a point.
        label: what the chart shows, for those who cannot see it.
        from_zero: start the y axis at 0.
        reference: name and y of a dashed line.
    """
    frame = _frame(lines, from_zero=from_zero, reference=reference)
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(label)}">',
        *_axes(frame),
        *([] if reference is None else _reference(frame, *reference)),
        *(part for line in lines for part in _line(line, frame)),
        "</svg>",
    ]
    return "\n".join(parts)


def _frame(lines: Sequence[Line], *, from_zero: bool, reference: tuple[str, float] | None) -> Frame:
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    ys += [] if reference is None else [reference[1]]
    low = 0.0 if from_zero else min(ys)
    margin = 0.05 * (max(ys) - low) or 0.5
    return Frame(max(xs), low if from_zero else low - margin, max(ys) + margin)


def _axes(frame: Frame) -> Iterator[str]:
    for value in units.ticks(frame.low_y, frame.high_y, about=5):
        y, middle = f"{frame.y(value):.1f}", f"{frame.y(value) + 4:.1f}"
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
        yield f'<text class="value" x="{LEFT - 8}" y="{middle}">{_value(value)}</text>'
    for value in units.ticks(0, frame.high_x, about=min(8, max(1, round(frame.high_x)))):
        x = f"{frame.x(value):.1f}"
        yield f'<text class="tick" x="{x}" y="{HEIGHT - BOTTOM + 18}">{value:g}</text>'
    yield f'<text class="tick" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 3}">step</text>'


def _value(value: float) -> str:
    return f"{value / 1000:g} k" if value >= 1000 else f"{value:g}"


def _reference(frame: Frame, name: str, value: float) -> Iterator[str]:
    y = frame.y(value)
    yield f'<line class="reference" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    text = f"{escape(name)} {value:.2f}"
    yield f'<text class="value" x="{WIDTH - RIGHT - 4}" y="{y - 5:.1f}">{text}</text>'


def _line(line: Line, frame: Frame) -> Iterator[str]:
    places = [(frame.x(x), frame.y(y)) for x, y in line.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    yield f'<polyline class="line {line.css_class}" points="{path}"/>'
    if line.marked or len(places) == 1:  # a line through one point is not to be seen
        for (x, y), (step, value) in zip(places, line.points, strict=True):
            tip = f"{escape(line.name)} at step {step:g}: {value:.4g}"
            yield f'<circle class="{line.css_class}" cx="{x:.1f}" cy="{y:.1f}" r="3.5">'
            yield f"<title>{tip}</title></circle>"
