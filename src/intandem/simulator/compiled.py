"""What the engine is given, whatever it was made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from intandem.ir import Action
    from intandem.simulator.operations import Operations


class Shown(NamedTuple):
    """Which operations of a row an action's span goes over.

    Attributes:
        action: shown as one span.
        first: place in the row of the operation that it starts with.
        last: place of the one that it ends with.
    """

    action: Action
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Compiled:
    """Operations of one step, and what they are shown as.

    Attributes:
        operations: the lanes.
        rows: of each rank, its operations.
        shown: of each rank, its actions; or None, where operation and action are the same.
        reduces: of each rank, whether its row has a reduction of gradients.
        recomputed: forwards that are run again, and where in their rank's row.
    """

    operations: Operations
    rows: list[list[int]]
    shown: list[list[Shown] | None]
    reduces: list[bool]
    recomputed: list[list[Shown]]
