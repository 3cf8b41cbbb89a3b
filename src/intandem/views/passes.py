"""What drawings tell apart besides kinds: a rank's stages, copies of the model, and pairs.

A micro-batch takes the same way through the ranks as others of its replica. Within a replica a rank
may hold several stages. Each (replica, place among the rank's stages) is a **pass**, and drawings
give each a shade of its own: one stage per rank, all held once, is pass 0 alone; a V has passes 0
and 1; two directions with one stage each have passes 0 and 1 as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from intandem.ir import Span, Timeline


@dataclass(frozen=True, slots=True)
class Passes:
    """Which pass an action belongs to.

    Attributes:
        replica_of: replica of each micro-batch.
        place_of: of (replica, rank, stage), how many of the rank's stages in that replica come
            before it.
        num_places: most stages that a rank holds in one replica.
    """

    replica_of: Mapping[int, int]
    place_of: Mapping[tuple[int, int, int], int]
    num_places: int

    @property
    def num_replicas(self) -> int:
        """Copies of the model."""
        return 1 + max(self.replica_of.values(), default=0)

    @property
    def num_passes(self) -> int:
        """Passes there may be; 1 where every rank has one stage."""
        return self.num_replicas * self.num_places

    @property
    def meanings(self) -> tuple[str, ...]:
        """What later passes are; empty where there is one."""
        copies = "the other copy" if self.num_replicas == 2 else "other copies"
        return (
            *(("a rank's later stages",) if self.num_places > 1 else ()),
            *((f"{copies} of the model",) if self.num_replicas > 1 else ()),
        )

    def replica(self, span: Span) -> int:
        """Replica that ``span`` is of."""
        return self.replica_of[span.action.microbatch]

    def index(self, span: Span) -> int:
        """Pass of ``span``, from 0; replicas one after another."""
        replica = self.replica(span)
        return replica * self.num_places + self.place_of[replica, span.rank, span.action.stage]


def passes_of(timeline: Timeline) -> Passes:
    """Find the passes of ``timeline`` by which rank ran which stage of which micro-batch."""
    ways: dict[int, dict[int, int]] = {}
    for span in timeline.spans:
        ways.setdefault(span.action.microbatch, {})[span.action.stage] = span.rank
    replicas: list[dict[int, int]] = []
    replica_of: dict[int, int] = {}
    for microbatch, way in sorted(ways.items()):
        same = (r for r, known in enumerate(replicas) if _agree(known, way))
        replica = replica_of[microbatch] = next(same, len(replicas))
        if replica == len(replicas):
            replicas.append({})
        replicas[replica] |= way
    place_of: dict[tuple[int, int, int], int] = {}
    for replica, way in enumerate(replicas):
        counts: dict[int, int] = {}
        for stage, rank in sorted(way.items()):
            place_of[replica, rank, stage] = counts.get(rank, 0)
            counts[rank] = counts.get(rank, 0) + 1
    return Passes(replica_of, place_of, 1 + max(place_of.values(), default=0))


def darker_note(timelines: Iterable[Timeline]) -> str:
    """What a darker shade says, for the legend of ``timelines``; empty where all have one pass."""
    meanings = dict.fromkeys(m for timeline in timelines for m in passes_of(timeline).meanings)
    return f"darker: {' or '.join(meanings)}" if meanings else ""


def groups(row: Sequence[Span]) -> list[tuple[Span, ...]]:
    """Split a rank's spans, in order, into those that ran alone and those that ran together."""
    found: list[tuple[Span, ...]] = []
    end_s = float("-inf")
    for span in row:
        if found and span.start_s < end_s - 1e-9 * abs(end_s) and span.end_s > span.start_s:
            found[-1] = (*found[-1], span)
        else:
            found.append((span,))
        end_s = max(end_s, span.end_s)
    return found


def _agree(known: Mapping[int, int], way: Mapping[int, int]) -> bool:
    return all(known.get(stage, rank) == rank for stage, rank in way.items())
