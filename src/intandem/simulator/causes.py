"""What let each action of a timeline begin when it did."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from intandem.ir import handovers

if TYPE_CHECKING:
    from intandem.ir import Action, Program, Span, Timeline

    Key = tuple[int, Action]


class Cause(NamedTuple):
    """Of what an action waited for, what it waited for longest.

    Attributes:
        span: the action before it on its rank, or of another rank, that made a message it needs.
        by_message: whether it is of another rank.
        there_s: from when on it waited for this no longer: when the action ended, or when the
            message arrived.
    """

    span: Span
    by_message: bool
    there_s: float


class Causes:
    """Causes of the actions of ``timeline``, which ran ``program``.

    Without arrivals in the timeline, a message arrives when the action that it is for begins, if
    the rank was free.
    """

    def __init__(self, timeline: Timeline, program: Program) -> None:
        spans = {(span.rank, span.action): span for span in timeline.spans}
        arrived = {(a.rank, a.message): a.time_s for a in timeline.arrivals}
        self._is_measured = bool(timeline.arrivals)
        self._before = _before_on_rank(timeline)
        self._made: dict[Key, list[Cause]] = defaultdict(list)
        for found in handovers(program):
            source = spans.get((found.source_rank, found.message.source))
            target = spans.get((found.target_rank, found.target))
            if source is not None and target is not None:
                default_s = source.end_s if timeline.arrivals else target.start_s
                there_s = arrived.get((found.target_rank, found.message), default_s)
                there_s = max(source.end_s, there_s)
                self._made[found.target_rank, found.target].append(Cause(source, True, there_s))

    def of(self, *group: Span) -> Cause | None:
        """Return the cause of actions that ran together, or of one; None if nothing came before.

        [Note: asked late] A message arrives, for the timeline, when the rank has asked for it, and
        ranks ask when they are free. One that was there already is no cause: such a message was
        on its way, or lay about, for longer while the rank was busy than while it was free.
        """
        causes = [cause for s in group for cause in self._made[s.rank, s.action]]
        message = max(causes, key=lambda cause: (cause.there_s, cause.span.end_s), default=None)
        own = self._before.get((group[0].rank, group[0].action))
        if own is None:
            return message
        if message is not None and message.there_s > own.end_s:
            hidden_s = own.end_s - message.span.end_s
            if not self._is_measured or message.there_s - own.end_s >= hidden_s:
                return message
        return Cause(own, False, own.end_s)


def _before_on_rank(timeline: Timeline) -> dict[Key, Span]:
    """Of each action, the one of its rank that ended last before it began."""
    found: dict[Key, Span] = {}
    for rank in range(timeline.num_ranks):
        row = timeline.of_rank(rank)
        for place, span in enumerate(row):
            earlier = place - 1
            while earlier >= 0 and row[earlier].end_s > span.start_s < span.end_s:
                earlier -= 1  # ran together with it
            if earlier >= 0:
                found[rank, span.action] = row[earlier]
    return found
