"""What an emulated rank does in a pass: it waits where it would compute, and really sends.

A message has the bytes that the costs say, whatever they mean: one tensor of bytes. Nothing is
computed with it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from intandem.ir import Compute, Recompute, Span
from intandem.runtime.transport.protocol import Label, TensorSpec

if TYPE_CHECKING:
    from intandem.costs import CostModel
    from intandem.ir import Action, Message
    from intandem.rehearsal.waits import Waiter
    from intandem.runtime.interpreter import Transit
    from intandem.runtime.transport.protocol import Contract, Transport


@dataclass(slots=True)
class Traffic:
    """Messages that a rank has sent or received.

    Attributes:
        num_messages: how many.
        num_bytes: of their tensors.
    """

    num_messages: int = 0
    num_bytes: int = 0

    def add(self, num_bytes: int) -> None:
        """Count a message."""
        self.num_messages += 1
        self.num_bytes += num_bytes


@dataclass(slots=True)
class Emulated:
    """What one rank brings back from a pass.

    Attributes:
        spans: when each action ran, on the clock of ``time.perf_counter``.
        sent: by this rank.
        received: by this rank, counted as it arrived.
    """

    spans: list[Span] = field(default_factory=list)
    sent: Traffic = field(default_factory=Traffic)
    received: Traffic = field(default_factory=Traffic)


class EmulatedPass:
    """One pass on one rank; see ``Acts``.

    Two actions that overlap take what a pair takes, together, and have the same span. A forward
    that is run again directly before its backward is part of the backward's span.

    Args:
        transport: this rank's end.
        costs: seconds of every action and bytes of every message.
        sequence: number of the pass; labels messages.
        waiter: of the thread that runs the pass.
    """

    def __init__(
        self, transport: Transport, costs: CostModel, sequence: int, waiter: Waiter
    ) -> None:
        self.result = Emulated()
        self._transport = transport
        self._costs = costs
        self._sequence = sequence
        self._waiter = waiter
        self._first: Action | None = None
        self._recomputing_since_s: float | None = None

    def post(self, transit: Transit) -> None:
        """Make ready to receive."""
        contract = contract_of(self._num_bytes(transit.message))
        self._transport.post(transit.peer, self._label(transit), contract)

    def transmit(self, transit: Transit) -> None:
        """Send a message of the right size."""
        num_bytes = self._num_bytes(transit.message)
        label, contract = self._label(transit), contract_of(num_bytes)
        self._transport.send(transit.peer, label, payload_of(num_bytes), contract)
        self.result.sent.add(num_bytes)

    def receive(self, transit: Transit) -> None:
        """Wait for a message, count it and let it go."""
        arrived = self._transport.wait(transit.peer, self._label(transit))
        self.result.received.add(sum(t.nbytes for t in arrived if t is not None))
        self._recomputing_since_s = None

    def finish(self) -> None:
        """Make sure that what was received is what it should be."""
        self._transport.verify()

    def compute(self, instruction: Compute | Recompute) -> None:
        """Wait for as long as an action takes, and note when."""
        action = instruction.action
        start_s = time.perf_counter()
        if isinstance(instruction, Recompute):
            self._waiter.until(start_s + self._costs.seconds(action))
            self._recomputing_since_s = start_s
        elif instruction.overlaps:
            self._first = action
        else:
            self._run(action, start_s)

    def _run(self, action: Action, start_s: float) -> None:
        first, self._first = self._first, None
        hold_s = self._costs.seconds(action) if first is None else self._costs.pair_s(first, action)
        self._waiter.until(start_s + hold_s)
        end_s, rank = time.perf_counter(), self._transport.rank
        if first is not None:
            self.result.spans.append(Span(rank, first, start_s, end_s))
        since_s, self._recomputing_since_s = self._recomputing_since_s, None
        began_s = start_s if since_s is None else since_s
        self.result.spans.append(Span(rank, action, began_s, end_s))

    def _label(self, transit: Transit) -> Label:
        return Label(self._sequence, transit.tag)

    def _num_bytes(self, message: Message) -> int:
        return self._costs.message_bytes(message.source.stage, message.target_stage)


@lru_cache
def payload_of(num_bytes: int) -> tuple[torch.Tensor]:
    """Return what such a message may consist of; it means nothing, and is never written to."""
    return (torch.empty(num_bytes, dtype=torch.uint8),)


@lru_cache
def contract_of(num_bytes: int) -> Contract:
    """Return what a message of so many bytes looks like."""
    return (TensorSpec((num_bytes,), torch.uint8),)
