"""What it takes to note when an action ran and when a message arrived, which is never left off."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from intandem.ir import Action, ActionKind, Compute, Message, Recv
from intandem.runtime.interpreter import Transit
from intandem.runtime.passes import Pass
from intandem.runtime.transport.protocol import Label
from intandem.runtime.work import RankResult


class Idle(Pass):
    """A pass whose actions and messages take no time, so that what is left is noting them."""

    def __init__(self) -> None:
        self.result = RankResult(0)
        self._rank = 0
        self._transport: Any = self
        self._at_hand: dict[Any, Any] = {}
        self._work: Any = Sequence
        self._recomputed_last = None

    def _forward(self, action: Action) -> None:
        pass

    def _like(self, transit: Transit) -> None:
        pass

    def wait(self, peer: int, label: object, *, like: object) -> None:
        """A message that is there."""


class Sequence:
    """What a pass is of."""

    sequence = 0


class Unnoted(Idle):
    """The same, with nothing noted."""

    def compute(self, instruction: Compute) -> None:  # type: ignore[override]
        """Run one action, as ``Pass.compute`` does."""
        action = instruction.action
        if action.kind is ActionKind.F:
            self._forward(action)

    def receive(self, transit: Transit) -> None:
        """Wait for a message, as ``Pass.receive`` does."""
        label = Label(self._work.sequence, transit.tag)
        like = self._like(transit)
        self._at_hand[transit.key] = self._transport.wait(transit.peer, label, like=like)


def noting_us(num: int = 20_000) -> dict[str, float]:
    """Microseconds to note an action and to note an arrival: with, less without, in turn."""
    action = Action(0, ActionKind.F, 0)
    calls: dict[str, tuple[str, Any]] = {
        "an action": ("compute", Compute(action)),
        "an arrival": ("receive", Transit.of(Recv(Message(action, 1), 0))),
    }
    found = {}
    for name, (method, argument) in calls.items():
        seconds: dict[type[Idle], list[float]] = {Idle: [], Unnoted: []}
        for _ in range(7):
            for kind, lap in seconds.items():
                call = getattr(kind(), method)
                began_s = time.perf_counter()
                for _ in range(num):
                    call(argument)
                lap.append(time.perf_counter() - began_s)
        found[name] = 1e6 * (median(seconds[Idle]) - median(seconds[Unnoted])) / num
    return found
