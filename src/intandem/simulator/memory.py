"""How many stage activations each rank holds, and when."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from intandem.ir import ActionKind, Program, Schedule, Timeline
from intandem.ir.residency import ACTIVATIONS_FREED, ACTIVATIONS_TAKEN, held_activations

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from intandem.ir import Action, Span


def activations(
    timeline: Timeline, kept_bytes: Sequence[int] | None = None
) -> tuple[tuple[tuple[float, int], ...], ...]:
    """Return per rank the (time in seconds, stage activations held from then on).

    One more when an F starts, one less when a B, or a W, ends; I keeps what W needs. Where there
    are no backwards, one less when the F ends. Where one ends as another starts, both steps are
    listed, the lower count first.

    Args:
        timeline: simulated or measured.
        kept_bytes: of each stage, what one of its activations counts; by default 1.
    """
    return tuple(_steps(timeline.of_rank(rank), kept_bytes) for rank in range(timeline.num_ranks))


def peak_activations(order: Timeline | Program | Schedule) -> tuple[int, ...]:
    """Return the most stage activations that each rank holds at once.

    A rank does one action after another, so its order alone decides this.
    """
    rows = (held_activations(_actions(order, rank)) for rank in range(order.num_ranks))
    return tuple(max(row, default=0) for row in rows)


def _actions(order: Timeline | Program | Schedule, rank: int) -> tuple[Action, ...]:
    match order:
        case Schedule():
            return order.actions[rank]
        case Program():
            return order.actions(rank)
        case Timeline():
            return tuple(span.action for span in order.of_rank(rank))


def _steps(
    spans: tuple[Span, ...], kept_bytes: Sequence[int] | None
) -> tuple[tuple[float, int], ...]:
    changes = list(_changes(spans, kept_bytes))
    counts = accumulate(change for _, change in changes)
    return tuple((time_s, count) for (time_s, _), count in zip(changes, counts, strict=True))


def _changes(
    spans: tuple[Span, ...], kept_bytes: Sequence[int] | None
) -> Iterator[tuple[float, int]]:
    alone = all(span.action.kind is ActionKind.F for span in spans)
    for span in spans:
        each = 1 if kept_bytes is None else kept_bytes[span.action.stage]
        if taken := ACTIVATIONS_TAKEN[span.action.kind]:
            yield span.start_s, taken * each
        if freed := taken if alone else ACTIVATIONS_FREED[span.action.kind]:
            yield span.end_s, -freed * each
