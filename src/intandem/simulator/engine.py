"""The clock: when each operation starts, if all take the time that they cost.

A rank does its operations one after another. A message leaves when its wire is free (bytes keep the
wire, latency does not) and arrives later by both; messages of one directed pair of ranks arrive in
the order they were sent. A send holds nobody up, unless the machine's transfers do not overlap
compute: then its rank stands still until the last byte has left, the first byte can be received
after the latency, and receiving holds the receiver for as long as the bytes take.

[Note: order of time] If every wire has one sender, the order in which ranks are looked at changes
nothing, so each is followed until it waits. If ranks share a wire, who is ready first goes first,
so ranks are looked at in the order of time: of those ready at once, the lower rank first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from intandem.simulator.operations import Operations, Way

Records = Sequence[Callable[[float], object]]
"""Per rank, what is told when each operation starts: what waits starts once it need no longer."""


class Departure(NamedTuple):
    """A message on a wire.

    Attributes:
        number: of the message.
        leaves_s: when its first byte leaves.
        left_s: when its last byte has.
    """

    number: int
    leaves_s: float
    left_s: float


@dataclass(frozen=True, slots=True)
class _State:
    """Where ranks stand, and what is under way.

    Attributes:
        streams: of each rank, the operations to come.
        clocks: of each rank, when it is free.
        free_s: of each wire, when it is free.
        arrivals: when each message arrives that has been handed over and not been taken.
        departures: where messages that keep a wire are written down, if they are.
    """

    streams: list[Iterator[int]]
    clocks: list[float]
    free_s: list[float]
    arrivals: dict[int, float]
    departures: list[Departure] | None


def run(
    operations: Operations,
    rows: Sequence[Iterable[int]],
    records: Records,
    departures: list[Departure] | None = None,
) -> list[int]:
    """Run every rank as far as it goes. Takes linear time.

    Args:
        operations: the lanes.
        rows: of each rank, its operations; read once, and only as far as they are run.
        records: told the starts.
        departures: if given, messages that kept a wire are added to it.

    Returns:
        Ranks that wait forever: none, if the order is valid.
    """
    free_s = [0.0] * operations.num_wires
    state = _State(list(map(iter, rows)), [0.0] * len(rows), free_s, {}, departures)
    if operations.any_order:
        return _run_in_any_order(operations, state, records)
    engine = _InOrderOfTime(operations, state, records)
    engine.run()
    return sorted(rank for rank, _ in engine.waiting.values())


def _run_in_any_order(operations: Operations, state: _State, records: Records) -> list[int]:
    """Follow each rank until it waits; who hands over its message wakes it.

    One loop with all in it but the wires: calls would double its time.
    """
    count, hold_s = operations.count, operations.hold_s
    takes, gives = operations.takes, operations.gives
    clocks, arrivals = state.clocks, state.arrivals
    held_up: list[tuple[int, ...]] = [()] * len(clocks)
    waiting: dict[int, int] = {}
    ready = list(range(len(clocks)))[::-1]
    while ready:
        rank = ready.pop()
        clock, record = clocks[rank], records[rank]
        for operation in chain(held_up[rank], state.streams[rank]):
            lane = operation // count
            distance = takes[lane]
            if distance is not None:
                arrival = arrivals.pop(operation + distance, None)
                if arrival is None:
                    waiting[operation + distance] = rank
                    held_up[rank] = (operation,)
                    break
                clock = arrival if arrival > clock else clock
            record(clock)
            clock += hold_s[lane]
            give = gives[lane]
            if give is not None:
                distance, way = give
                number = operation + distance
                if way.wire is None:
                    arrivals[number] = clock + way.latency_s
                else:
                    clock = _send(state, number, clock, way)
                if number in waiting:
                    ready.append(waiting.pop(number))
        clocks[rank] = clock
    return sorted(waiting.values())


def _send(state: _State, number: int, clock: float, way: Way) -> float:
    """Put a message on its wire at ``clock``; return when its rank can go on."""
    wire = way.wire or 0
    leaves_s = max(clock, state.free_s[wire])
    state.free_s[wire] = left_s = leaves_s + way.link_s
    state.arrivals[number] = (leaves_s if way.holds_sender else left_s) + way.latency_s
    if state.departures is not None:
        state.departures.append(Departure(number, leaves_s, left_s))
    return left_s if way.holds_sender else clock


class _InOrderOfTime:
    """Lets one operation after another end, the earliest first; see [Note: order of time].

    Attributes:
        waiting: of each message that is waited for, the rank that waits, and its operation.
    """

    def __init__(self, operations: Operations, state: _State, records: Records) -> None:
        self.waiting: dict[int, tuple[int, int]] = {}
        self._operations = operations
        self._state = state
        self._records = records
        self._ends: list[tuple[float, int, int]] = []
        """(Time, rank, operation) of what ends next on each rank."""

    def run(self) -> None:
        """Run every rank as far as it goes."""
        for rank in range(len(self._records)):
            self._go_on(rank)
        gives, count = self._operations.gives, self._operations.count
        while self._ends:
            clock, rank, ended = heappop(self._ends)
            give = gives[ended // count]
            if give is not None:
                clock = self._give(ended + give[0], clock, give[1])
            self._state.clocks[rank] = clock
            self._go_on(rank)

    def _go_on(self, rank: int) -> None:
        operation = next(self._state.streams[rank], None)
        if operation is None:
            return
        distance = self._operations.takes[operation // self._operations.count]
        if distance is None:
            self._begin(rank, operation, 0.0)
        elif (arrival := self._state.arrivals.pop(operation + distance, None)) is None:
            self.waiting[operation + distance] = (rank, operation)
        else:
            self._begin(rank, operation, arrival)

    def _begin(self, rank: int, operation: int, arrival_s: float) -> None:
        start_s = max(self._state.clocks[rank], arrival_s)
        self._records[rank](start_s)
        end_s = start_s + self._operations.hold_s[operation // self._operations.count]
        heappush(self._ends, (end_s, rank, operation))

    def _give(self, number: int, clock: float, way: Way) -> float:
        if way.wire is None:
            self._state.arrivals[number] = clock + way.latency_s
        else:
            clock = _send(self._state, number, clock, way)
        if number in self.waiting:
            rank, operation = self.waiting.pop(number)
            self._begin(rank, operation, self._state.arrivals.pop(number))
        return clock
