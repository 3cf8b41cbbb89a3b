"""Which action of one rank each message of a program goes to, from which of another."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from intandem.ir.action import Action, ActionKind
from intandem.ir.program import Recv

if TYPE_CHECKING:
    from collections.abc import Iterator

    from intandem.ir.program import Message, Program


class Handover(NamedTuple):
    """A message from one rank to another, and the action that needs it.

    Attributes:
        message: names the action that makes it.
        target: the action that needs it.
        source_rank: where it is made.
        target_rank: where it is needed.
    """

    message: Message
    target: Action
    source_rank: int
    target_rank: int


def handovers(program: Program) -> tuple[Handover, ...]:
    """Return every message between ranks, in rank order and each rank's in the order it receives.

    What no action of the receiving rank needs is left out.
    """
    return tuple(
        found for rank in range(program.num_ranks) for found in _received_by(program, rank)
    )


def _received_by(program: Program, rank: int) -> Iterator[Handover]:
    own = set(program.actions(rank))
    for instruction in program.instructions[rank]:
        if isinstance(instruction, Recv):
            for target in _takers(instruction.message):
                if target in own:
                    yield Handover(instruction.message, target, instruction.peer, rank)


def _takers(message: Message) -> tuple[Action, ...]:
    """Actions that may need ``message``: the forward, or the backward whole or for inputs."""
    stage, mb = message.target_stage, message.source.microbatch
    if message.source.kind is ActionKind.F:
        return (Action(stage, ActionKind.F, mb),)
    return (Action(stage, ActionKind.B, mb), Action(stage, ActionKind.I, mb))
