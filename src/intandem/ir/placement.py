"""Which ranks hold which stage.

Most schedules hold a stage once. Bidirectional ones (Chimera, DualPipe) and data parallelism hold
it several times, in **replicas** of the pipeline: each has every stage once, and a micro-batch
passes through one of them from first forward to last backward. Two ranks and two directions::

    replica 0   stage 0 on rank 0, stage 1 on rank 1     micro-batches 0 .. M/2 - 1
    replica 1   stage 0 on rank 1, stage 1 on rank 0     micro-batches M/2 .. M - 1
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Placement:
    """Maps each stage to the pipeline ranks that run it.

    Attributes:
        rank_of: ``rank_of[stage]`` is the rank (0-based) that runs ``stage`` for replica 0.
        replicas: the same for replicas 1, 2, ...; empty where every stage is held once.
    """

    rank_of: tuple[int, ...]
    replicas: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def loop(cls, num_ranks: int, stages_per_rank: int = 1) -> Placement:
        """Round-robin: stages 0, P, 2P, ... on rank 0 (Megatron's interleaving)."""
        return cls(tuple(s % num_ranks for s in range(num_ranks * stages_per_rank)))

    @classmethod
    def vee(cls, num_ranks: int) -> Placement:
        """Down and back up: rank 0 owns the first and the last stage (ZB-V, DualPipeV)."""
        return cls.wave(num_ranks, 2)

    @classmethod
    def wave(cls, num_ranks: int, stages_per_rank: int) -> Placement:
        """Down, back up, down again: neighbouring stages at a turn share a rank (Hanayo)."""
        down = tuple(range(num_ranks))
        rows = (down if turn % 2 == 0 else down[::-1] for turn in range(stages_per_rank))
        return cls(tuple(rank for row in rows for rank in row))

    @classmethod
    def bidirectional(cls, num_ranks: int) -> Placement:
        """Two replicas, one down and one up the ranks (Chimera, DualPipe)."""
        down = tuple(range(num_ranks))
        return cls(down, (down[::-1],))

    @property
    def num_stages(self) -> int:
        """Length of the pipeline."""
        return len(self.rank_of)

    @property
    def num_replicas(self) -> int:
        """How often each stage is held."""
        return 1 + len(self.replicas)

    @property
    def num_ranks(self) -> int:
        """Ranks that hold at least one stage."""
        return len({rank for row in self.rows for rank in row})

    @property
    def rows(self) -> tuple[tuple[int, ...], ...]:
        """Per replica, the rank of each stage."""
        return (self.rank_of, *self.replicas)

    def replica_of(self, microbatch: int, num_microbatches: int) -> int:
        """Replica that ``microbatch`` passes through: the replicas share them out, in order."""
        return microbatch * self.num_replicas // num_microbatches

    def rank_for(self, stage: int, microbatch: int, num_microbatches: int) -> int:
        """Rank that runs ``stage`` on ``microbatch``."""
        return self.rows[self.replica_of(microbatch, num_microbatches)][stage]

    def holders_of(self, stage: int) -> tuple[int, ...]:
        """Ranks that hold ``stage``, by replica; the first answers for its weights."""
        return tuple(row[stage] for row in self.rows)

    def stages_of(self, rank: int) -> tuple[int, ...]:
        """Stages that ``rank`` holds, ascending."""
        return tuple(s for s in range(self.num_stages) if rank in self.holders_of(s))
