"""Which rank owns which stage."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Placement:
    """Maps each stage to the pipeline rank that runs it.

    Attributes:
        rank_of: ``rank_of[stage]`` is the pipeline rank (0-based) that owns ``stage``.
    """

    rank_of: tuple[int, ...]

    @classmethod
    def loop(cls, num_ranks: int, stages_per_rank: int = 1) -> Placement:
        """Round-robin: stages 0, P, 2P, ... on rank 0 (Megatron's interleaving)."""
        return cls(tuple(s % num_ranks for s in range(num_ranks * stages_per_rank)))

    @classmethod
    def vee(cls, num_ranks: int) -> Placement:
        """Down and back up: rank 0 owns the first and the last stage (ZB-V, DualPipeV)."""
        down = tuple(range(num_ranks))
        return cls(down + down[::-1])

    @property
    def num_stages(self) -> int:
        """Length of the pipeline."""
        return len(self.rank_of)

    @property
    def num_ranks(self) -> int:
        """Ranks that own at least one stage."""
        return len(set(self.rank_of))

    def stages_of(self, rank: int) -> tuple[int, ...]:
        """Stages that ``rank`` owns, ascending."""
        return tuple(s for s, owner in enumerate(self.rank_of) if owner == rank)
