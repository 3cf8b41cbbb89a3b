"""The compute schedule: which rank does what, in which order. No time, no transfers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from intandem.ir.action import ActionKind
from intandem.ir.pictures import html_of

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
        overlaps: (rank, slot) of every action that runs together with the next one of its rank,
            a forward with a backward (DualPipe), written ``0F1& 7B0``.
    """

    name: str
    placement: Placement
    num_microbatches: int
    actions: tuple[tuple[Action, ...], ...]
    overlaps: frozenset[tuple[int, int]] = frozenset()

    @property
    def num_ranks(self) -> int:
        """Ranks, counted by their orders."""
        return len(self.actions)

    @property
    def num_stages(self) -> int:
        """Length of the pipeline."""
        return self.placement.num_stages

    @property
    def is_forward_only(self) -> bool:
        """Whether it has no backward at all: what evaluation runs."""
        return all(action.kind is ActionKind.F for row in self.actions for action in row)

    def words(self, rank: int) -> list[str]:
        """Actions of ``rank`` in their text form; an ampersand joins one to the next."""
        row = enumerate(self.actions[rank])
        return [f"{a}&" if (rank, slot) in self.overlaps else str(a) for slot, a in row]

    def _repr_html_(self) -> str | None:
        return html_of(self)

    def __str__(self) -> str:
        rows = (" ".join(self.words(rank)) for rank in range(self.num_ranks))
        return "\n".join(f"rank {rank}: {row}".rstrip() for rank, row in enumerate(rows))
