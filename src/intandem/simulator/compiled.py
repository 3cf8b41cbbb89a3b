"""What the engine is given, whatever it was made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intandem.ir import Action
    from intandem.simulator.operations import Operations


class Shown(NamedTuple):
    """Which operations of a row its actions are shown over.

    Attributes:
        actions: of one rank, in order.
        first: of each, the place in the row of the operation that it starts with.
        last: of each, the place of the one that it ends with.
    """

    actions: Sequence[Action]
    first: Sequence[int]
    last: Sequence[int]


@dataclass(frozen=True, slots=True)
class Compiled:
    """Operations of one step, and what they are shown as.

    Attributes:
        operations: the lanes.
        rows: of each rank, its operations.
        shown: of each rank, where its actions are; None if each is one operation, and all are.
        reduces: of each rank, whether its row has a reduction of gradients.
        recomputed: of each rank, the forwards that are run again.
    """

    operations: Operations
    rows: list[list[int]]
    shown: list[Shown | None]
    reduces: list[bool]
    recomputed: list[Shown]
