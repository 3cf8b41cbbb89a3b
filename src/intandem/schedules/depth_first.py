"""Stages of a rank in turn, a group of micro-batches at a time.

A rank with V stages takes the first group through its first stage, the same group through its
second, ... and then the next group: depth first, where breadth first would take every
micro-batch through a stage before the next stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise

from intandem.ir import Action, ActionKind


def even_groups(num_microbatches: int, num_groups: int) -> tuple[int, ...]:
    """Return the sizes of ``num_groups`` groups that differ by one at most, larger first."""
    size, num_larger = divmod(num_microbatches, num_groups)
    return tuple(size + (group < num_larger) for group in range(num_groups))


def groups_of_at_least(size: int, num_microbatches: int) -> tuple[int, ...]:
    """Return groups of ``size`` micro-batches or a few more; a single one where there are fewer."""
    return even_groups(num_microbatches, max(1, num_microbatches // size))


@dataclass(frozen=True, slots=True)
class DepthFirst:
    """The order in which ranks that hold ``stages_per_rank`` stages of a loop go through them.

    Attributes:
        num_ranks: P.
        stages_per_rank: V.
        groups: micro-batches of each group.
    """

    num_ranks: int
    stages_per_rank: int
    groups: tuple[int, ...]

    def forwards(self, rank: int) -> list[Action]:
        """Forwards of ``rank``, in order."""
        return self._passes(self._stages(rank), ActionKind.F)

    def backwards(self, rank: int, kind: ActionKind = ActionKind.B) -> list[Action]:
        """Backwards of ``rank``, or their parts I or W: the same groups, its last stage first."""
        return self._passes(self._stages(rank)[::-1], kind)

    def _stages(self, rank: int) -> range:
        return range(rank, self.num_ranks * self.stages_per_rank, self.num_ranks)

    def _passes(self, stages: range, kind: ActionKind) -> list[Action]:
        ends = pairwise(accumulate(self.groups, initial=0))
        return [
            Action(stage, kind, mb)
            for start, end in ends
            for stage in stages
            for mb in range(start, end)
        ]
