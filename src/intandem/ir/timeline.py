"""When each action ran, simulated or measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from intandem.ir.action import Action


@dataclass(frozen=True, slots=True)
class Span:
    """One action on the clock. Times are seconds since the step began."""

    rank: int
    action: Action
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """Spans of one training step, simulated or measured.

    Attributes:
        spans: every compute action, each rank's in the order it ran them.
        num_ranks: ranks of the pipeline, idle ones included.
    """

    spans: tuple[Span, ...]
    num_ranks: int

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
        return max((self._span_of(rank) for rank in range(self.num_ranks)), default=0.0)

    @property
    def busy_s(self) -> float:
        """Seconds of compute, summed over ranks."""
        return sum(s.end_s - s.start_s for s in self.spans)

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
        return tuple(s for s in self.spans if s.rank == rank)

    def _span_of(self, rank: int) -> float:
        spans = self.of_rank(rank)
        if not spans:
            return 0.0
        return max(s.end_s for s in spans) - min(s.start_s for s in spans)


def _idle_share(busy_s: float, grid_s: float) -> float:
    return 1.0 - busy_s / grid_s if grid_s > 0 else 0.0
