"""What each rank holds over time, in bytes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from intandem.ir import ActionKind, Program, Schedule, StageLinks
from intandem.simulator.preparing import compile_order, machine_for, start_times
from intandem.simulator.simulation import spans_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from intandem.costs import CostModel
    from intandem.ir import Span
    from intandem.machine import Machine
    from intandem.simulator.compiled import Compiled
    from intandem.simulator.engine import Departure

_ACTIVATIONS, _PENDING, _BUFFERS = range(3)


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """What a rank holds from ``time_s`` on.

    Attributes:
        time_s: seconds since the step began.
        activation_bytes: from the start of each F to the end of its B or I. Where the forward is
            run again: its input from the start of the first, all from the start of the second.
        pending_bytes: from the end of each I to the end of its W.
        buffer_bytes: messages: on the sender from the end of the action that makes it to when its
            last byte has left; on the receiver from when its first byte leaves to the start of
            the action that needs it. Between two stages of one rank: once, between the two
            actions.
    """

    time_s: float
    activation_bytes: int
    pending_bytes: int
    buffer_bytes: int

    @property
    def held_bytes(self) -> int:
        """All but messages: what ``search`` holds against a cap in bytes."""
        return self.activation_bytes + self.pending_bytes

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.held_bytes + self.buffer_bytes


def memory_over_time(
    order: Schedule | Program, costs: CostModel, machine: Machine | None = None
) -> tuple[tuple[MemoryUse, ...], ...]:
    """Return per rank what it holds, each time that this changes.

    What ends at a time is gone when something else starts at it. What ``costs`` leave out counts
    nothing.

    Raises:
        ScheduleVerifyError: if ``order`` is not valid.
        ValueError: if ``costs`` are of another number of stages, or ``machine`` of ranks.
    """
    machine = machine_for(order.placement, order.num_ranks, costs, machine)
    compiled = compile_order(order, costs, machine)
    departures: list[Departure] = []
    starts = start_times(order, compiled, compiled.rows, departures)
    spans = spans_of(order, compiled, starts)
    changes: list[list[_Change]] = [[] for _ in range(order.num_ranks)]
    recomputed = _recomputed_s(compiled, starts)
    for change in _held_by_stages(spans, costs, recomputed):
        changes[change.rank].append(change)
    sent = _sent(compiled, starts, departures)
    for change in _held_as_messages(order, spans, costs, sent):
        changes[change.rank].append(change)
    return tuple(tuple(_summed(row)) for row in changes)


def peak_bytes(
    order: Schedule | Program, costs: CostModel, machine: Machine | None = None
) -> tuple[int, ...]:
    """Return the most bytes that each rank holds at once; see ``memory_over_time``."""
    rows = memory_over_time(order, costs, machine)
    return tuple(max((use.total_bytes for use in row), default=0) for row in rows)


class _Change(NamedTuple):
    time_s: float
    rank: int
    what: int
    num_bytes: int


def _hold(rank: int, what: int, num_bytes: int, start_s: float, end_s: float) -> Iterator[_Change]:
    if num_bytes and end_s > start_s:
        yield _Change(start_s, rank, what, num_bytes)
        yield _Change(end_s, rank, what, -num_bytes)


def _recomputed_s(
    compiled: Compiled, starts: Sequence[Sequence[float]]
) -> dict[tuple[int, int], float]:
    """When each forward that is run again starts to be, by stage and micro-batch."""
    return {
        (action.stage, action.microbatch): began[place]
        for row, began in zip(compiled.recomputed, starts, strict=True)
        for action, place in zip(row.actions, row.first, strict=True)
    }


def _held_by_stages(
    spans: Sequence[Span], costs: CostModel, recomputed_s: dict[tuple[int, int], float]
) -> Iterator[_Change]:
    forward: dict[tuple[int, int], Span] = {}
    pending_s: dict[tuple[int, int], float] = {}
    kept_bytes = costs.activation_bytes or (0,) * costs.num_stages
    pending_bytes = costs.pending_bytes or (0,) * costs.num_stages
    for span in spans:
        stage, rank = span.action.stage, span.rank
        key = (stage, span.action.microbatch)
        if span.action.kind is ActionKind.F:
            forward[key] = span
        elif span.action.kind is ActionKind.W:
            since_s = pending_s.pop(key)
            yield from _hold(rank, _PENDING, pending_bytes[stage], since_s, span.end_s)
        else:
            since_s = forward.pop(key).start_s
            if key in recomputed_s:
                num_bytes = costs.message_bytes(stage - 1, stage) if stage else 0
                yield from _hold(rank, _ACTIVATIONS, num_bytes, since_s, recomputed_s[key])
                since_s = recomputed_s[key]
            yield from _hold(rank, _ACTIVATIONS, kept_bytes[stage], since_s, span.end_s)
            if span.action.kind is ActionKind.I:
                pending_s[key] = span.end_s
    for span in forward.values():
        num_bytes = kept_bytes[span.action.stage]
        yield from _hold(span.rank, _ACTIVATIONS, num_bytes, span.start_s, span.end_s)


def _sent(
    compiled: Compiled, starts: Sequence[Sequence[float]], departures: Sequence[Departure]
) -> dict[tuple[object, ...], tuple[float, float]]:
    """When the first and the last byte leave, by (source stage, target stage, micro-batch)."""
    operations = compiled.operations
    count, hold_s, gives = operations.count, operations.hold_s, operations.gives
    sent: dict[int, tuple[float, float]] = {}
    for row, began in zip(compiled.rows, starts, strict=True):
        for operation, start_s in zip(row, began, strict=True):
            if (give := gives[operation // count]) is not None:
                end_s = start_s + hold_s[operation // count]
                sent[operation + give[0]] = (end_s, end_s)
    sent.update({d.number: (d.leaves_s, d.left_s) for d in departures})
    names = operations.message_names()
    return {(*names[number // count], number % count): when for number, when in sent.items()}


def _held_as_messages(
    order: Schedule | Program,
    spans: Sequence[Span],
    costs: CostModel,
    sent: dict[tuple[object, ...], tuple[float, float]],
) -> Iterator[_Change]:
    done = {
        (s.action.stage, s.action.microbatch, s.action.kind is ActionKind.F): s
        for s in spans
        if s.action.kind is not ActionKind.W
    }
    links = order.links if isinstance(order, Program) else StageLinks.chain(order.num_stages)
    for source, target in (*links.activations, *links.gradients):
        num_bytes = costs.message_bytes(source, target)
        for mb in range(order.num_microbatches if num_bytes else 0):
            maker = done.get((source, mb, source < target))
            taker = done.get((target, mb, source < target))
            if maker is None or taker is None:
                continue
            if maker.rank == taker.rank:
                yield from _hold(taker.rank, _BUFFERS, num_bytes, maker.end_s, taker.start_s)
                continue
            leaves_s, left_s = sent[source, target, mb]
            yield from _hold(maker.rank, _BUFFERS, num_bytes, maker.end_s, left_s)
            yield from _hold(taker.rank, _BUFFERS, num_bytes, leaves_s, taker.start_s)


def _summed(changes: list[_Change]) -> Iterator[MemoryUse]:
    """Add up the changes of one rank, those of the same time at once."""
    held = [0, 0, 0]
    changes.sort(key=itemgetter(0))
    for time_s, same in groupby(changes, key=itemgetter(0)):
        for change in same:
            held[change.what] += change.num_bytes
        yield MemoryUse(time_s, *held)
