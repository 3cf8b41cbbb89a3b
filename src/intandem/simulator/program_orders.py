"""Programs → operations: a compute, a send and a receive are each one of them.

Two computes that overlap stand side by side (P009) and are one operation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intandem.ir import Action, ActionKind, Compute, Recompute, Recv, ReduceGrads, Send
from intandem.simulator.compiled import Compiled, Shown
from intandem.simulator.operations import Operations
from intandem.simulator.step_end import StepEnd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intandem.costs import CostModel
    from intandem.ir import Instruction, Message, Program
    from intandem.simulator.network import Network


def compile_program(
    program: Program, costs: CostModel, network: Network, num_steps: int
) -> Compiled:
    """Return the operations of a valid ``program``."""
    operations = Operations(program.num_microbatches * num_steps)
    step_end = StepEnd(program.placement, costs, network.machine, operations)
    rows = [_Row(rank, costs, network, step_end, operations) for rank in range(program.num_ranks)]
    for row, instructions in zip(rows, program.instructions, strict=True):
        row.enter(instructions)
    network.enter(operations)
    reduces = [ReduceGrads() in instructions for instructions in program.instructions]
    return Compiled(
        operations,
        [row.row for row in rows],
        [_shown(row.shown) for row in rows],
        reduces,
        [_shown(row.recomputed) for row in rows],
    )


def _shown(places: Sequence[tuple[Action, int, int]]) -> Shown:
    actions, first, last = zip(*places, strict=True) if places else ((), (), ())
    return Shown(actions, first, last)


class _Row:
    """The operations of one rank."""

    def __init__(
        self,
        rank: int,
        costs: CostModel,
        network: Network,
        step_end: StepEnd,
        operations: Operations,
    ) -> None:
        self.row: list[int] = []
        self.shown: list[tuple[Action, int, int]] = []
        self.recomputed: list[tuple[Action, int, int]] = []
        self._rank = rank
        self._costs = costs
        self._network = network
        self._step_end = step_end
        self._operations = operations
        self._first: Action | None = None

    def enter(self, instructions: Sequence[Instruction]) -> None:
        """Append what ``instructions`` come to."""
        for instruction in instructions:
            match instruction:
                case Compute(action=action, overlaps=True):
                    self._first = action
                case Compute(action=action):
                    self._compute(action)
                case Send(message=message, peer=peer):
                    self._send(message, peer)
                case Recv(message=message, peer=peer):
                    self._receive(message, peer)
                case Recompute(action=action):
                    place = len(self.row)
                    self.recomputed.append((action, place, place))
                    self._hold(action, self._costs.seconds(action))
                case ReduceGrads():
                    self.row += self._step_end.reduction(self._rank)

    def _compute(self, action: Action) -> None:
        place = len(self.row)
        again = (Action(action.stage, ActionKind.F, action.microbatch), place - 1, place - 1)
        first = place - 1 if self.recomputed[-1:] == [again] else place
        if self._first is None:
            self._hold(action, self._costs.seconds(action))
        else:
            self.shown.append((self._first, place, place))
            self._hold(action, self._costs.pair_s(self._first, action))
            self._first = None
        self.shown.append((action, first, place))

    def _hold(self, action: Action, hold_s: float) -> None:
        self._append(self._operations.lane(("hold", hold_s), hold_s), action.microbatch)

    def _send(self, message: Message, peer: int) -> None:
        source, target = message.source.stage, message.target_stage
        way = self._network.way((self._rank, peer), source, target)
        lane = self._operations.lane(
            ("send", source, target, peer), gives=(source, target), way=way
        )
        self._append(lane, message.source.microbatch)

    def _receive(self, message: Message, peer: int) -> None:
        source, target = message.source.stage, message.target_stage
        hold_s = 0.0
        if not self._network.machine.transfers_overlap:
            hold_s = self._network.way((peer, self._rank), source, target).link_s
        lane = self._operations.lane(
            ("receive", source, target, hold_s), hold_s, takes=(source, target)
        )
        self._append(lane, message.source.microbatch)

    def _append(self, lane: int, index: int) -> None:
        self.row.append(lane * self._operations.count + index)
