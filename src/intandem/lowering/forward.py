"""The forward half of a program: what evaluation and prediction execute."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from intandem.ir import ActionKind, Compute, Instruction, Program, Recv, Send, StageLinks

if TYPE_CHECKING:
    from collections.abc import Sequence


def forward_half(program: Program) -> Program:
    """Return ``program`` without backwards, recomputation and reductions, in the same order."""
    rows = tuple(_forward_row(row) for row in program.instructions)
    links = StageLinks(program.links.activations, ())
    return dataclasses.replace(program, links=links, instructions=rows)


def _forward_row(row: Sequence[Instruction]) -> tuple[Instruction, ...]:
    kept = (i for i in row if _is_forward(i))
    return tuple(Compute(i.action) if isinstance(i, Compute) else i for i in kept)


def _is_forward(instruction: Instruction) -> bool:
    match instruction:
        case Compute(action=action):
            return action.kind is ActionKind.F
        case Send(message=message) | Recv(message=message):
            return message.source.kind is ActionKind.F
        case _:
            return False
