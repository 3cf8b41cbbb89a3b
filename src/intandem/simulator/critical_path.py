"""The critical path: actions, each of which began as soon as the one before it let it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intandem.ir.analysis import PathStep
from intandem.simulator.causes import Causes

if TYPE_CHECKING:
    from intandem.ir import Program, Span, Timeline


def critical_path(timeline: Timeline, program: Program) -> tuple[PathStep, ...]:
    """Return the actions that the length of ``timeline`` comes from, first to last.

    From the action that ended last, backwards: of what an action waited for (the action before it
    on its rank, and those that made messages it needs), the one that it waited for longest.

    Args:
        timeline: simulated or measured.
        program: that ran.
    """
    causes, steps = Causes(timeline, program), []
    span: Span | None = max(timeline.spans, key=lambda s: s.end_s, default=None)
    while span is not None:
        cause = causes.of(span)
        since_s = timeline.start_s if cause is None else cause.span.end_s
        by_message = cause is not None and cause.by_message
        steps.append(PathStep(span, by_message, span.start_s - since_s))
        span = None if cause is None else cause.span
    return tuple(reversed(steps))
