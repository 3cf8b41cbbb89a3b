"""The reduction of gradients that several ranks hold, at the end of every rank's row."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from intandem.ir import ReduceGrads

if TYPE_CHECKING:
    from intandem.ir import Program


def add_reduction(program: Program) -> Program:
    """Append ``ReduceGrads`` to every row."""
    rows = tuple((*row, ReduceGrads()) for row in program.instructions)
    return replace(program, instructions=rows)
