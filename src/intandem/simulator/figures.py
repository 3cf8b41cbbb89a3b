"""How good an order is, without its spans."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from intandem.simulator.memory import peak_activations
from intandem.simulator.preparing import compile_order, machine_for, start_times

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from intandem.costs import CostModel
    from intandem.ir import Program, Schedule
    from intandem.machine import Machine
    from intandem.simulator.compiled import Compiled, Shown


@dataclass(frozen=True, slots=True)
class Figures:
    """What a simulated step comes to.

    Attributes:
        num_actions: of all ranks.
        starts_s: of each rank, when its first action starts; 0 if it has none.
        ends_s: of each rank, when its last action ends; 0 if it has none.
        busy_s: of each rank, seconds in which it computes; actions that overlap count once.
        peak_activations: of each rank, the most stage activations that it holds at once.
    """

    num_actions: int
    starts_s: tuple[float, ...]
    ends_s: tuple[float, ...]
    busy_s: tuple[float, ...]
    peak_activations: tuple[int, ...]

    @property
    def makespan_s(self) -> float:
        """Seconds from the first start to the last end, over all ranks."""
        return max(self.ends_s) - min(self.starts_s)

    @property
    def rank_span_s(self) -> float:
        """The longest (last end - first start) of any one rank, in seconds."""
        return max(end - start for start, end in zip(self.starts_s, self.ends_s, strict=True))

    @property
    def bubble_ratio(self) -> float:
        """Idle share of the grid, in [0, 1): 1 - busy / (num_ranks * makespan)."""
        return self._idle_share(self.makespan_s)

    @property
    def rank_bubble_ratio(self) -> float:
        """The same against the longest rank: 1 - busy / (num_ranks * rank_span)."""
        return self._idle_share(self.rank_span_s)

    def _idle_share(self, span_s: float) -> float:
        return 1.0 - sum(self.busy_s) / (len(self.busy_s) * span_s) if span_s > 0 else 0.0


def simulate_figures(
    order: Schedule | Program, costs: CostModel, machine: Machine | None = None
) -> Figures:
    """Return the figures of what ``simulate`` would return, in about half the time.

    Raises:
        ScheduleVerifyError: if ``order`` is not valid.
        ValueError: if ``costs`` are of another number of stages, or ``machine`` of ranks.
    """
    machine = machine_for(order.placement, order.num_ranks, costs, machine)
    compiled = compile_order(order, costs, machine)
    starts = start_times(order, compiled, compiled.rows)
    extents = [_extent(compiled, rank, row) for rank, row in enumerate(starts)]
    return Figures(
        num_actions=sum(
            len(shown.actions if shown else row)
            for shown, row in zip(compiled.shown, starts, strict=True)
        ),
        starts_s=tuple(extent.start_s for extent in extents),
        ends_s=tuple(extent.end_s for extent in extents),
        busy_s=tuple(extent.busy_s for extent in extents),
        peak_activations=peak_activations(order),
    )


class _Extent(NamedTuple):
    start_s: float
    end_s: float
    busy_s: float


def _extent(compiled: Compiled, rank: int, starts: Sequence[float]) -> _Extent:
    count, hold_s = compiled.operations.count, compiled.operations.hold_s
    row, shown = compiled.rows[rank], compiled.shown[rank]
    first: Sequence[int] = range(len(row))
    last = first
    if shown is None:
        busy_s = math.fsum(hold_s[operation // count] for operation in row)
    else:
        first, last = shown.first, shown.last
        busy_s = math.fsum(_busy_s(shown, starts, [hold_s[o // count] for o in row]))
    if not last:
        return _Extent(0.0, 0.0, 0.0)
    return _Extent(starts[first[0]], starts[last[-1]] + hold_s[row[last[-1]] // count], busy_s)


def _busy_s(shown: Shown, starts: Sequence[float], hold_s: Sequence[float]) -> Iterator[float]:
    """Seconds of each action, from the last; of two that overlap, of the one that is longer.

    That is the second: a forward that is run again for it is part of it.
    """
    previous = -1
    for first, last in zip(reversed(shown.first), reversed(shown.last), strict=True):
        if last != previous:
            yield hold_s[last] if first == last else starts[last] + hold_s[last] - starts[first]
        previous = last
