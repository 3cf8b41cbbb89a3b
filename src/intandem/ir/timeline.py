"""When each action ran, simulated or measured."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from intandem.ir.pictures import html_of

if TYPE_CHECKING:
    from intandem.ir.action import Action
    from intandem.ir.program import Message


class Span(NamedTuple):
    """One action on the clock. Times are seconds since the step began.

    A tuple, since a simulation makes one per action: a frozen dataclass takes three times as long.
    """

    rank: int
    action: Action
    start_s: float
    end_s: float


class Arrival(NamedTuple):
    """A message that a rank had waited for, or asked for once it was there already.

    Attributes:
        rank: that received it.
        message: which.
        time_s: from when on the rank had it, on the clock of the spans.
    """

    rank: int
    message: Message
    time_s: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """Spans of one training step, simulated or measured.

    Attributes:
        spans: every compute action, each rank's in the order it ran them.
        num_ranks: ranks of the pipeline, idle ones included.
        arrivals: of messages, each rank's in the order it received them; empty where not measured.
    """

    spans: tuple[Span, ...]
    num_ranks: int
    arrivals: tuple[Arrival, ...] = ()
    _rows: dict[int, list[Span]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """Spans by rank, filled in when first asked for."""

    @property
    def start_s(self) -> float:
        """First start over all ranks; 0 when nothing ran."""
        return min((s.start_s for s in self.spans), default=0.0)

    @property
    def end_s(self) -> float:
        """Last end over all ranks; 0 when nothing ran."""
        return max((s.end_s for s in self.spans), default=0.0)

    @property
    def makespan_s(self) -> float:
        """Seconds from the first start to the last end, over all ranks."""
        return self.end_s - self.start_s

    @property
    def rank_span_s(self) -> float:
        """The longest (last end - first start) of any one rank, in seconds."""
        rows = map(self.of_rank, range(self.num_ranks))
        return max((_extent_s(row) for row in rows), default=0.0)

    @property
    def busy_s(self) -> float:
        """Seconds in which a rank computes, summed over ranks; actions that overlap count once."""
        return sum(map(self.busy_of_rank_s, range(self.num_ranks)))

    @property
    def bubble_ratio(self) -> float:
        """Idle share of the grid, in [0, 1): 1 - busy / (num_ranks * makespan)."""
        return _idle_share(self.busy_s, self.num_ranks * self.makespan_s)

    @property
    def rank_bubble_ratio(self) -> float:
        """The same against the longest rank: 1 - busy / (num_ranks * rank_span)."""
        return _idle_share(self.busy_s, self.num_ranks * self.rank_span_s)

    def of_rank(self, rank: int) -> tuple[Span, ...]:
        """Spans of one rank, in the order it ran them."""
        if not self._rows:
            for span in self.spans:
                self._rows.setdefault(span.rank, []).append(span)
        return tuple(self._rows.get(rank, ()))

    def _repr_html_(self) -> str | None:
        return html_of(self)

    def busy_of_rank_s(self, rank: int) -> float:
        """Seconds in which ``rank`` computes; actions that overlap count once."""
        busy_s = 0.0
        until_s = -math.inf
        for span in sorted(self.of_rank(rank), key=attrgetter("start_s")):
            busy_s += max(0.0, span.end_s - max(span.start_s, until_s))
            until_s = max(until_s, span.end_s)
        return busy_s


def _extent_s(spans: tuple[Span, ...]) -> float:
    if not spans:
        return 0.0
    return max(s.end_s for s in spans) - min(s.start_s for s in spans)


def _idle_share(busy_s: float, grid_s: float) -> float:
    return 1.0 - busy_s / grid_s if grid_s > 0 else 0.0
