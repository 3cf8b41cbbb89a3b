"""The boxes of a timeline's SVG: one per action, with its letter, number and description."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from intandem.views import units
from intandem.views.colors import shade_class

if TYPE_CHECKING:
    from collections.abc import Iterator

    from intandem.ir import Action, Span
    from intandem.views.clock import Clock
    from intandem.views.passes import Passes
    from intandem.views.report import OptimizerSpan

LEAST_WIDTH = 0.5
"""Of a box, so that the shortest action is seen."""
MARK = 3
"""Height of the line that marks the critical path."""


@dataclass(frozen=True, slots=True)
class Place:
    """A rectangle, in user units."""

    x: float
    y: float
    width: float
    height: float

    def __str__(self) -> str:
        corner = f'x="{self.x:.2f}" y="{self.y:g}"'
        return f'<rect {corner} width="{self.width:.2f}" height="{self.height:g}"/>'


@dataclass(frozen=True, slots=True)
class Boxes:
    """What all boxes of one timeline have in common.

    Attributes:
        clock: where they are.
        start_s: when the timeline starts.
        name: of the timeline; starts ids and descriptions.
        passes: which say how dark a box is.
        path: (rank, action) of those on the critical path, which have a line below them.
    """

    clock: Clock
    start_s: float
    name: str
    passes: Passes
    path: frozenset[tuple[int, Action]] = frozenset()

    def of_group(self, group: tuple[Span, ...]) -> Iterator[str]:
        """Draw actions that ran together, one below the other; one alone is a row high."""
        for span, place in self._placed(group):
            others = [str(other.action) for other in group if other is not span]
            yield self._box(span, place, f"; together with {', '.join(others)}" if others else "")

    def of_update(self, update: OptimizerSpan) -> str:
        """Draw a rank's optimizer update."""
        place = self._place(update, 0.0, self.clock.row_height)
        tip = f"optimizer: rank {update.rank}; takes {_length(update)}"
        head = f'<g class="box O" data-rank="{update.rank}" role="img" tabindex="-1"'
        return f'{head} aria-label="{tip}"><title>{tip}</title>{place}{label("O", "", place)}</g>'

    def picture(self, group: tuple[Span, ...]) -> Iterator[str]:
        """Draw the same boxes without ids and descriptions, for pictures that stand still."""
        for span, place in self._placed(group):
            yield f'<g class="{self._classes(span)}">{place}{_label_of(span, place)}</g>'

    def _placed(self, group: tuple[Span, ...]) -> Iterator[tuple[Span, Place]]:
        """Where the boxes of ``group`` are; none where the clock has ended before it."""
        if group[0].start_s - self.start_s >= self.clock.length_s > 0:
            return
        height = self.clock.row_height / len(group)
        for index, span in enumerate(group):
            yield span, self._place(span, index * height, height)

    def _box(self, span: Span, place: Place, more: str) -> str:
        action = span.action
        replica = f", replica {self.passes.replica(span)}" if self.passes.num_replicas > 1 else ""
        tip = (
            f"{self.name} {action}: rank {span.rank}, stage {action.stage}, micro-batch "
            f"{action.microbatch}{replica}; starts {units.duration(span.start_s - self.start_s)}, "
            f"takes {_length(span)}{more}{'; on the critical path' if self._marked(span) else ''}"
        )
        return (
            f'<g class="{self._classes(span)}" id="{self.name}-{action}" '
            f'data-mb="{action.microbatch}" data-rank="{span.rank}" role="img" tabindex="-1" '
            f'aria-label="{tip}"><title>{tip}</title>{place}{_label_of(span, place)}'
            f"{self._mark(span, place)}</g>"
        )

    def _marked(self, span: Span) -> bool:
        return (span.rank, span.action) in self.path

    def _mark(self, span: Span, place: Place) -> str:
        """A line below the row; where two ran together, inside the box."""
        if not self._marked(span):
            return ""
        below = 0.5 if place.height == self.clock.row_height else -MARK
        corner = f'x="{place.x:.2f}" y="{place.y + place.height + below:g}"'
        return f'<rect class="mark" {corner} width="{place.width:.2f}" height="{MARK}"/>'

    def _classes(self, span: Span) -> str:
        return f"box {span.action.kind}{shade_class(self.passes.index(span))}"

    def _place(self, span: Span | OptimizerSpan, down: float, height: float) -> Place:
        x = self.clock.x(span.start_s - self.start_s)
        end_s = min(span.end_s, self.start_s + self.clock.length_s)
        width = max(self.clock.width(end_s - span.start_s), LEAST_WIDTH)
        return Place(x, self.clock.y(span.rank) + down, width, height)


def label(letter: str, number: str, place: Place) -> str:
    """Letter and number beside one another, one above the other, or as much as there is room.

    What has no room is there as well, for a page to show once it is zoomed.
    """
    x, middle = place.x + place.width / 2, place.y + place.height / 2
    if place.height < 18:
        return _low_label(letter, number, place)
    if place.width >= 8 + 7 * len(letter + number):
        return f'<text x="{x:.1f}" y="{middle + 4:g}">{letter}{number}</text>'
    if place.height < 26:
        return _low_label(letter, number, place)
    if place.width >= 1 + 5 * len(number):
        upper = f'<text class="small" x="{x:.1f}" y="{middle - 2:g}">{letter}</text>'
        return upper + f'<text class="small" x="{x:.1f}" y="{middle + 9:g}">{number}</text>'
    upper = f'<text class="tiny" x="{x:.2f}" y="{middle - 2:g}">{letter}</text>'
    both = upper + f'<text class="tiny" x="{x:.2f}" y="{middle + 9:g}">{number}</text>'
    if place.width < 7:
        return both
    return f'<text class="small alone" x="{x:.1f}" y="{middle + 4:g}">{letter}</text>{both}'


def _low_label(letter: str, number: str, place: Place) -> str:
    """The same where there is no room for two lines."""
    x, baseline = place.x + place.width / 2, place.y + place.height / 2 + 3
    where = f'x="{x:.1f}" y="{baseline:g}"'
    if place.width >= 3 + 5.5 * len(letter + number):
        return f'<text class="small" {where}>{letter}{number}</text>'
    both = f'<text class="tiny" {where}>{letter}{number}</text>'
    if place.width < 7:
        return both
    return f'<text class="small alone" {where}>{letter}</text>{both}'


def _label_of(span: Span, place: Place) -> str:
    return label(str(span.action.kind), str(span.action.microbatch), place)


def _length(span: Span | OptimizerSpan) -> str:
    return units.duration(span.end_s - span.start_s)
