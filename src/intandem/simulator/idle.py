"""Where the idle time of each rank went. ``IdleParts`` says what the parts are.

A gap before an action that needs what another rank makes, by what kept the rank waiting::

    rank 0   0F1---------------|
    rank 1   1F0-----|                          1F1
                     | wait    | transfer | overhead
                             made      arrived

While the action that is waited for has not begun itself, what it waits for counts: a wait for a
rank that waits for a message is transfer.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from statistics import fmean, median
from typing import TYPE_CHECKING, NamedTuple

from intandem.costs import CostModel
from intandem.ir import ActionKind
from intandem.ir.analysis import IdleParts
from intandem.simulator.causes import Cause, Causes
from intandem.simulator.simulation import simulate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from intandem.ir import Program, Span, Timeline

WARM_UP, STEADY, COOL_DOWN = range(3)


def idle_parts(
    timeline: Timeline, program: Program, updates: Mapping[int, tuple[float, float]] | None = None
) -> tuple[IdleParts, ...]:
    """Return the parts of each rank.

    Args:
        timeline: simulated or measured. Without arrivals, messages are taken to arrive when what
            they are for begins.
        program: that ran.
        updates: by rank, start and end of the optimizer's update, on the timeline's clock.

    Returns:
        From the first start over all ranks to the end of their last action, or of their last update
        if that is later.
    """
    usual = _Usual(timeline, program.placement.num_stages)
    equal, uneven = (
        _idle(simulate(program, costs), program, {})
        for costs in (usual.equal_costs(), usual.uneven_costs())
    )
    found = _idle(timeline, program, updates or {})
    return tuple(map(_parts, found, equal, uneven))


@dataclass(slots=True)
class _Idle:
    """Idle seconds of a rank before it is said which waits are the schedule's."""

    waits_s: list[float]
    transfer_s: float = 0.0
    overhead_s: float = 0.0
    optimizer_s: float = 0.0

    def take(
        self, start_s: float, end_s: float, gap: _Gap, causes: Causes, last: Span | None
    ) -> None:
        """Take in an idle time: go back along what it waited for, and what that waited for.

        Args:
            start_s: when it began.
            end_s: when it was over.
            gap: that it is of.
            causes: of all actions.
            last: action that ended last: what a rank with nothing left to do waits for.
        """
        if gap.group:
            cause = causes.of(*gap.group)
        else:
            cause = None if last is None else Cause(last, True, last.end_s)
        while end_s > start_s:
            if cause is None:
                self.waits_s[gap.phase] += end_s - start_s  # nothing came before
                return
            there_s = _within(cause.there_s, start_s, end_s)
            made_s = _within(cause.span.end_s, start_s, there_s)
            begun_s = _within(cause.span.start_s, start_s, made_s)
            self.overhead_s += end_s - there_s
            self.transfer_s += there_s - made_s
            self.waits_s[gap.phase] += made_s - begun_s
            end_s, cause = begun_s, causes.of(cause.span)


class _Gap(NamedTuple):
    """When a rank did nothing; ``group`` ran next, or nothing did."""

    start_s: float
    end_s: float
    phase: int
    group: tuple[Span, ...]


def _parts(found: _Idle, equal: _Idle, uneven: _Idle) -> IdleParts:
    own = [min(pair) for pair in zip(found.waits_s, equal.waits_s, strict=True)]
    more = [
        min(wait - part, max(0.0, stages - part))
        for wait, part, stages in zip(found.waits_s, own, uneven.waits_s, strict=True)
    ]
    rest = [wait - part - m for wait, part, m in zip(found.waits_s, own, more, strict=True)]
    return IdleParts(
        fill_s=own[WARM_UP],
        order_s=own[STEADY],
        drain_s=own[COOL_DOWN],
        imbalance_s=sum(more),
        knock_on_s=sum(rest),
        transfer_s=found.transfer_s,
        overhead_s=found.overhead_s,
        optimizer_s=found.optimizer_s,
    )


def _idle(
    timeline: Timeline, program: Program, updates: Mapping[int, tuple[float, float]]
) -> list[_Idle]:
    causes = Causes(timeline, program)
    last = max(timeline.spans, key=lambda span: span.end_s, default=None)
    end_s = max([timeline.end_s, *(end for _, end in updates.values())])
    rows = []
    for rank in range(timeline.num_ranks):
        idle = _Idle([0.0, 0.0, 0.0])
        for gap in _gaps(timeline, rank):
            start_s, until_s = gap.start_s, gap.end_s
            if not gap.group and rank in updates:  # what comes after it is the optimizer's
                until_s = _within(updates[rank][0], start_s, until_s)
                idle.optimizer_s += gap.end_s - until_s
            idle.take(start_s, until_s, gap, causes, last)
        idle.optimizer_s += end_s - timeline.end_s
        rows.append(idle)
    return rows


def _gaps(timeline: Timeline, rank: int) -> Iterator[_Gap]:
    """Gaps of a rank from the first start of all ranks to the last end; empty ones as well."""
    row = sorted(timeline.of_rank(rank), key=lambda span: span.start_s)
    first_backward = next((i for i, s in enumerate(row) if s.action.kind is not ActionKind.F), 1)
    last_forward = max((i for i, s in enumerate(row) if s.action.kind is ActionKind.F), default=0)
    free_s, place = timeline.start_s, 0
    while place < len(row):
        end = place + 1
        until_s = row[place].end_s
        while end < len(row) and row[end].start_s < until_s:
            until_s = max(until_s, row[end].end_s)
            end += 1
        phase = STEADY if place <= last_forward else COOL_DOWN
        phase = WARM_UP if place <= first_backward else phase
        yield _Gap(free_s, row[place].start_s, phase, tuple(row[place:end]))
        free_s, place = until_s, end
    yield _Gap(free_s, timeline.end_s, COOL_DOWN if row else WARM_UP, ())


def _within(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


class _Usual:
    """Usual seconds of actions: medians over micro-batches. Those that overlap share their time."""

    def __init__(self, timeline: Timeline, num_stages: int) -> None:
        self._num_stages = num_stages
        seconds: dict[tuple[str, int], list[float]] = defaultdict(list)
        for rank in range(timeline.num_ranks):
            for group in (gap.group for gap in _gaps(timeline, rank) if gap.group):
                length_s = max(span.end_s for span in group) - group[0].start_s
                for span in group:
                    seconds[span.action.kind, span.action.stage].append(length_s / len(group))
        self._medians = {key: median(found) for key, found in seconds.items()}

    def equal_costs(self) -> CostModel:
        """Every stage takes the mean of all."""
        f, b, i, w = ((self._mean(kind),) * self._num_stages for kind in "FBIW")
        return CostModel(f, i, w, b)

    def uneven_costs(self) -> CostModel:
        """Every stage takes its own time."""
        f, b, i, w = (
            tuple(self._medians.get((kind, s), self._mean(kind)) for s in range(self._num_stages))
            for kind in "FBIW"
        )
        return CostModel(f, i, w, b)

    def _mean(self, kind: str) -> float:
        found = [seconds for (of, _), seconds in self._medians.items() if of == kind]
        return fmean(found) if found else 0.0
