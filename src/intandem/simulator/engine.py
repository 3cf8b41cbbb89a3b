"""When each action runs, if every action and transfer takes the time the cost model says.

A rank does its instructions one after another. A send holds nobody up: its message leaves when
the link is free (bytes keep the link, latency does not) and arrives a transfer later; messages
of one directed pair of ranks arrive in the order they were sent. A receive holds its rank until
its message is there. A recomputation holds its rank like a forward and is shown as part of the
backward that it stands directly before; elsewhere it is not shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intandem.ir import (
    ActionKind,
    Compute,
    Program,
    Recompute,
    Recv,
    Schedule,
    Send,
    Span,
    Timeline,
)
from intandem.ir.codes import KIND_INDEX, NUM_KINDS
from intandem.lowering import lower
from intandem.rules import verify

if TYPE_CHECKING:
    from intandem.costs import CostModel
    from intandem.ir import Action, Message


def simulate(order: Schedule | Program, costs: CostModel) -> Timeline:
    """Run a schedule or program on paper. Takes linear time.

    Args:
        order: verified before use. A schedule is lowered first, as a chain of stages.
        costs: of as many stages.

    Returns:
        Spans in rank order; each rank's in the order it runs them. Times start at 0.

    Raises:
        ScheduleVerifyError: if ``order`` is not valid.
        ValueError: if ``costs`` is of another number of stages.
    """
    if costs.num_stages != order.placement.num_stages:
        got = f"costs of {costs.num_stages} stages for {order.placement.num_stages} stages"
        msg = f"{got}; expected the same number"
        raise ValueError(msg)
    if isinstance(order, Schedule):
        program = lower(order)
    else:
        program = order
        verify(program)
    engine = _Engine(program, costs)
    engine.run()
    spans = tuple(span for row in engine.spans for span in row)
    return Timeline(spans, program.num_ranks)


class _Engine:
    """The clock of every rank, and when every message sent so far arrives."""

    def __init__(self, program: Program, costs: CostModel) -> None:
        self.spans: list[list[Span]] = [[] for _ in program.instructions]
        self._rows = program.instructions
        self._num_stages = program.placement.num_stages
        self._num_microbatches = program.num_microbatches
        self._costs = costs
        self._seconds_of = {kind: costs.kind_s(kind) for kind in ActionKind}
        self._next_slot = [0] * len(self._rows)
        self._clock_s = [0.0] * len(self._rows)
        self._recomputing_since_s: list[float | None] = [None] * len(self._rows)
        self._link_free_s: dict[tuple[int, int], float] = {}
        self._arrival_s: dict[int, float] = {}
        self._waiting: dict[int, int] = {}
        self._ready = list(range(len(self._rows)))

    def run(self) -> None:
        """Run every rank to its end. A rank that waits is woken by the message it waits for."""
        while self._ready:
            self._run_rank(self._ready.pop())

    def _run_rank(self, rank: int) -> None:
        row = self._rows[rank]
        clock_s = self._clock_s[rank]
        for slot in range(self._next_slot[rank], len(row)):
            instruction = row[slot]
            if isinstance(instruction, Compute):
                clock_s = self._compute(rank, instruction.action, clock_s)
            elif isinstance(instruction, Send):
                self._send(instruction.message, (rank, instruction.peer), clock_s)
            elif isinstance(instruction, Recv):
                number = self._number(instruction.message)
                arrival_s = self._arrival_s.get(number)
                if arrival_s is None:
                    self._waiting[number] = rank
                    self._next_slot[rank], self._clock_s[rank] = slot, clock_s
                    return
                clock_s = max(clock_s, arrival_s)
                self._recomputing_since_s[rank] = None
            elif isinstance(instruction, Recompute):
                self._recomputing_since_s[rank] = clock_s
                clock_s += self._costs.seconds(instruction.action)
        self._next_slot[rank] = len(row)

    def _compute(self, rank: int, action: Action, clock_s: float) -> float:
        start_s = self._recomputing_since_s[rank]
        if start_s is None:
            start_s = clock_s
        else:
            self._recomputing_since_s[rank] = None
        end_s = clock_s + self._seconds_of[action.kind][action.stage]
        self.spans[rank].append(Span(rank, action, start_s, end_s))
        return end_s

    def _send(self, message: Message, edge: tuple[int, int], now_s: float) -> None:
        leaves_s = self._link_free_s.get(edge, 0.0)
        leaves_s = max(leaves_s, now_s)
        free_s = self._link_free_s[edge] = leaves_s + self._costs.link_s(message)
        number = self._number(message)
        self._arrival_s[number] = free_s + self._costs.latency_s
        if number in self._waiting:
            self._ready.append(self._waiting.pop(number))

    def _number(self, message: Message) -> int:
        a = message.source
        lane = a.stage * NUM_KINDS + KIND_INDEX[a.kind]
        code = lane * self._num_microbatches + a.microbatch
        return code * self._num_stages + message.target_stage
