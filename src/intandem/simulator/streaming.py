"""Figures of orders that are too long to be kept: read once, and forgotten at once."""

from __future__ import annotations

from collections import deque
from itertools import count
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from intandem.errors import ScheduleError
from intandem.ir import ActionKind
from intandem.ir.codes import KINDS
from intandem.ir.residency import ACTIVATIONS_FREED, ACTIVATIONS_TAKEN
from intandem.simulator.chain_orders import ChainLanes
from intandem.simulator.engine import run
from intandem.simulator.figures import Figures
from intandem.simulator.network import Network
from intandem.simulator.preparing import machine_for

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from intandem.costs import CostModel
    from intandem.ir import Placement
    from intandem.machine import Machine
    from intandem.simulator.operations import Operations

_NOTHING, _F, _B, _I, _W = range(5)
"""What a stage has done with a micro-batch: nothing; its F; then its B, or its I and its W."""

_NEXT = {
    ActionKind.F: bytes([_F, 0, 0, 0, 0]),
    ActionKind.B: bytes([0, _B, 0, 0, 0]),
    ActionKind.I: bytes([0, _I, 0, 0, 0]),
    ActionKind.W: bytes([0, 0, 0, _W, 0]),
}
"""What it has done after one more action; 0 where that may not come now."""


def simulate_codes(
    rows: Sequence[Iterable[int]],
    placement: Placement,
    num_microbatches: int,
    costs: CostModel,
    machine: Machine | None = None,
) -> Figures:
    """Return the figures of a compute order that is given action by action.

    Rules are checked as actions run. What is kept is a byte per stage and micro-batch, and the
    messages under way.

    Args:
        rows: of each rank, its order in ``ActionCodes``; read once, as far as it can run.
        placement: stage to rank.
        num_microbatches: M, at least 1.
        costs: of as many stages.
        machine: of as many ranks. If given, its links count, and not those of ``costs``.

    Raises:
        ScheduleError: at the first action that breaks a rule; if an action is missing; if ranks
            wait for each other forever.
        ValueError: if ``costs`` are of another number of stages, or ``machine`` of ranks; or if its
            transfers hold ranks, for which the order of receives must be known beforehand.
    """
    machine = machine_for(placement, len(rows), costs, machine)
    if not machine.transfers_overlap:
        msg = "transfers that hold ranks cannot be streamed; use simulate_figures"
        raise ValueError(msg)
    counts = (num_microbatches, num_microbatches)
    lanes = ChainLanes(placement, counts, costs, Network(costs, machine))
    state = bytearray(placement.num_stages * num_microbatches)
    tallies = [_Tally(rank, lanes, state) for rank in range(len(rows))]
    for lane in _lanes(placement, lanes.operations):
        tallies[lane.rank].lanes[lane.number] = lane
    streams = [tally.read(row) for tally, row in zip(tallies, rows, strict=True)]
    if stuck := run(lanes.operations, streams, [tally.began.append for tally in tallies]):
        msg = f"ranks {', '.join(map(str, stuck))} wait for each other forever"
        raise ScheduleError(msg)
    _require_all(state, num_microbatches)
    keeps = set(state) != {_F}
    return Figures(
        num_actions=sum(tally.num_actions for tally in tallies),
        starts_s=tuple(tally.start_s for tally in tallies),
        ends_s=tuple(tally.end_s for tally in tallies),
        busy_s=tuple(tally.busy_s for tally in tallies),
        peak_activations=tuple(tally.peak if keeps else min(tally.peak, 1) for tally in tallies),
    )


class _Lane(NamedTuple):
    """A lane of the engine, and what is counted for it.

    Attributes:
        rank: that it is on.
        number: of the lane.
        shift: from an operation to the byte of its stage and micro-batch.
        next: what that byte becomes.
        change: activations held after an action less those held before.
        hold_s: seconds of an action.
    """

    rank: int
    number: int
    shift: int
    next: bytes
    change: int
    hold_s: float


def _lanes(placement: Placement, operations: Operations) -> Iterator[_Lane]:
    numbers = count()
    for rank_of in placement.rows:
        for stage, rank in enumerate(rank_of):
            for kind in KINDS:
                lane = next(numbers)
                shift = (lane - stage) * operations.count
                change = ACTIVATIONS_TAKEN[kind] - ACTIVATIONS_FREED[kind]
                yield _Lane(rank, lane, shift, _NEXT[kind], change, operations.hold_s[lane])


class _Tally:
    """Counts what one rank does while the engine reads its order.

    Attributes:
        began: start of the operation that was handed on last, once it has run.
        lanes: those of this rank, by number.
        num_actions: so far.
        start_s: of the first.
        end_s: of the last.
        busy_s: of all.
        peak: most activations held.
    """

    def __init__(self, rank: int, lanes: ChainLanes, state: bytearray) -> None:
        self.began: deque[float] = deque(maxlen=1)
        self.lanes: dict[int, _Lane] = {}
        self.num_actions = 0
        self.start_s = self.end_s = self.busy_s = 0.0
        self.peak = 0
        self._rank = rank
        self._state = state
        self._moved = lanes.moved
        self._count = lanes.operations.count
        self._codes = lanes.codes

    def read(self, codes: Iterable[int]) -> Iterator[int]:
        """Hand on the operations of ``codes``: each is asked for when the one before has run."""
        if self._moved:
            codes = (code + self._moved[code % self._count] for code in codes)
        state, began, per_lane = self._state, self.began, self._count
        start_s, busy_s, held, peak, num_actions = None, 0.0, 0, 0, 0
        lane = None
        for operation in codes:
            lane = self.lanes.get(operation // per_lane)
            if lane is None:
                self._refuse(operation, "is of no stage on this rank")
            cell = operation - lane.shift
            state[cell] = after = lane.next[state[cell]]
            if not after:
                self._refuse(operation, "comes too early, or once too often")
            busy_s += lane.hold_s
            num_actions += 1
            held += lane.change
            peak = held if held > peak else peak
            yield operation
            if start_s is None:
                start_s = began[0]
        if start_s is not None and lane is not None:
            self.start_s, self.end_s = start_s, began[0] + lane.hold_s
        self.busy_s, self.num_actions, self.peak = busy_s, num_actions, peak

    def _refuse(self, operation: int, why: str) -> NoReturn:
        code = operation
        if self._moved and operation >= 0:
            code -= self._moved[operation % self._count]
        msg = f"rank {self._rank}: {self._codes.action(code)} {why}"
        raise ScheduleError(msg)


def _require_all(state: bytearray, num_microbatches: int) -> None:
    """Return if each stage has done one F and one B, or I and W, per micro-batch; or only F's.

    Raises:
        ScheduleError: otherwise; names the first stage and micro-batch that has not.
    """
    done = {_F} if set(state) == {_F} else {_B, _W}
    if not set(state) <= done:
        cell = next(cell for cell, has in enumerate(state) if has not in done)
        stage, mb = divmod(cell, num_microbatches)
        msg = f"stage {stage} does not do all it should with micro-batch {mb}"
        raise ScheduleError(msg)
