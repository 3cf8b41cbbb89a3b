"""Forwards that are run again, directly before the backward that needs them.

For stage 1 of two, on rank 1::

    before: recv:0F0>1@0 1F0 1B0 send:1B0>0@0
    after:  recv:0F0>1@0 1F0 recompute:1F0 1B0 send:1B0>0@0

Where that backward overlaps with a forward, before the two of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from intandem.ir import Action, ActionKind, Compute, Program, Recompute

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet

    from intandem.ir import Instruction

_BACKWARD = (ActionKind.B, ActionKind.I)


def add_recomputation(program: Program, stages: AbstractSet[int]) -> Program:
    """Put a ``Recompute`` before each B or I of ``stages``, after the receives of that B or I.

    The computes of a pair that overlaps stay side by side.

    Raises:
        ValueError: if a stage does not exist.
    """
    num_stages = program.placement.num_stages
    if unknown := sorted(s for s in stages if not 0 <= s < num_stages):
        msg = f"recompute names stage {unknown[0]}; stages are 0..{num_stages - 1}"
        raise ValueError(msg)
    rows = tuple(tuple(_with_recomputation(row, stages)) for row in program.instructions)
    return replace(program, instructions=rows)


def _with_recomputation(
    row: tuple[Instruction, ...], stages: AbstractSet[int]
) -> Iterator[Instruction]:
    follows = False
    for slot, instruction in enumerate(row):
        if isinstance(instruction, Compute):
            together = row[slot : slot + 1 + instruction.overlaps]
            if not follows:
                yield from _recomputed(together, stages)
            follows = instruction.overlaps
        yield instruction


def _recomputed(
    together: tuple[Instruction, ...], stages: AbstractSet[int]
) -> Iterator[Instruction]:
    for instruction in together:
        if isinstance(instruction, Compute):
            action = instruction.action
            if action.kind in _BACKWARD and action.stage in stages:
                yield Recompute(Action(action.stage, ActionKind.F, action.microbatch))
