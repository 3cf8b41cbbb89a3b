"""The compute schedule: which rank does what, in which order. No time, no transfers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from intandem.ir.action import Action
    from intandem.ir.placement import Placement


@dataclass(frozen=True, slots=True)
class Schedule:
    """Compute actions of every rank, in execution order.

    A value: building one does no I/O and needs no process group. ``verify`` decides
    whether it is valid; the constructor does not.

    Attributes:
        name: what people call it, such as ``1f1b``.
        placement: stage to rank.
        num_microbatches: micro-batches per training step.
        actions: ``actions[rank]`` is that rank's order.
    """

    name: str
    placement: Placement
    num_microbatches: int
    actions: tuple[tuple[Action, ...], ...]

    @property
    def num_ranks(self) -> int:
        """Ranks, counted by their orders."""
        return len(self.actions)

    @property
    def num_stages(self) -> int:
        """Length of the pipeline."""
        return self.placement.num_stages

    def __str__(self) -> str:
        rows = (" ".join(map(str, row)) for row in self.actions)
        return "\n".join(f"rank {rank}: {row}".rstrip() for rank, row in enumerate(rows))
