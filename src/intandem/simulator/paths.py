"""The way of one micro-batch through a chain of stages, alone: what every bound starts from.

    head       from the start until F of a stage can begin
    turn       from the start until B or I of a stage can begin
    back       from the start of B or I of a stage until everything of the micro-batch is done

The start is the beginning of the first F, of all stages or of one rank's; everything is that of all
stages or of that rank's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from intandem.ir import Action, ActionKind, Message

if TYPE_CHECKING:
    from intandem.costs import CostModel


@dataclass(frozen=True, slots=True)
class StageSeconds:
    """The least that every stage takes, whatever is chosen where there is a choice.

    Attributes:
        forward: seconds of F.
        urgent: seconds of a backward until the stage before can go on.
        whole: seconds of a whole backward.
    """

    forward: tuple[float, ...]
    urgent: tuple[float, ...]
    whole: tuple[float, ...]

    @classmethod
    def of(cls, costs: CostModel, split_backward: bool | None) -> StageSeconds:
        """Read ``costs``: with I and W (True), with B (False), or with the shorter (None)."""
        whole, first = costs.backward_s, costs.backward_input_s
        halves = tuple(i + w for i, w in zip(first, costs.backward_weight_s, strict=True))
        if split_backward is None:
            return cls(
                costs.forward_s, tuple(map(min, whole, first)), tuple(map(min, whole, halves))
            )
        if split_backward:
            return cls(costs.forward_s, first, halves)
        return cls(costs.forward_s, whole, whole)


@dataclass(frozen=True, slots=True)
class Way:
    """Seconds along the chain; lists are per stage, and hold for stages from ``first`` on."""

    first: int
    head: list[float]
    turn: list[float]
    back: list[float]


@dataclass(frozen=True, slots=True)
class Chain:
    """Stages on ranks, with the seconds between neighbours.

    Attributes:
        rank_of: per stage.
        seconds: of the stages.
        down: per stage s, seconds from the end of F of s to where s + 1 has it.
        up: per stage s, seconds from the end of B or I of s + 1 to where s has it.
    """

    rank_of: tuple[int, ...]
    seconds: StageSeconds
    down: tuple[float, ...]
    up: tuple[float, ...]

    @classmethod
    def of(cls, costs: CostModel, rank_of: tuple[int, ...], seconds: StageSeconds) -> Chain:
        """Put the stages of ``costs`` on ranks."""
        pairs = [(s, s + 1) for s in range(len(rank_of) - 1)]
        down = tuple(_hop_s(costs, rank_of, ActionKind.F, pair) for pair in pairs)
        up = tuple(_hop_s(costs, rank_of, ActionKind.I, pair[::-1]) for pair in pairs)
        return cls(rank_of, seconds, down, up)

    def way(self) -> Way:
        """Return the way from the first F to the end of everything."""
        return self._way(0, None)

    def way_of(self, rank: int) -> Way:
        """Return the way from the first F on ``rank`` to the end of everything on ``rank``."""
        return self._way(self.rank_of.index(rank), rank)

    def _way(self, first: int, rank: int | None) -> Way:
        seconds, num_stages = self.seconds, len(self.rank_of)
        head, turn, back = ([0.0] * num_stages for _ in range(3))
        for s in range(first + 1, num_stages):
            head[s] = head[s - 1] + seconds.forward[s - 1] + self.down[s - 1]
        last = num_stages - 1
        turn[last] = head[last] + seconds.forward[last]
        for s in reversed(range(first, last)):
            turn[s] = turn[s + 1] + seconds.urgent[s + 1] + self.up[s]
        for s in range(first, num_stages):
            counts = rank is None or self.rank_of[s] == rank
            before = self.up[s - 1] + back[s - 1] if s > first else 0.0
            back[s] = max(seconds.whole[s] if counts else 0.0, seconds.urgent[s] + before)
        return Way(first, head, turn, back)

    def full_s(self, way: Way, stage: int) -> float:
        """Seconds from the start of F of ``stage`` until everything is done."""
        last = len(self.rank_of) - 1
        return way.turn[last] - way.head[stage] + way.back[last]


@dataclass(frozen=True, slots=True)
class Part:
    """What one rank does of a chain, with the way that its bounds are measured along."""

    chain: Chain
    way: Way
    rank: int
    num_microbatches: int

    @property
    def stages(self) -> list[int]:
        """Stages on the rank, ascending."""
        return [s for s, r in enumerate(self.chain.rank_of) if r == self.rank]

    def full_s(self, stage: int) -> float:
        """Seconds from the start of F of ``stage`` until everything is done."""
        return self.chain.full_s(self.way, stage)


def _hop_s(
    costs: CostModel, rank_of: tuple[int, ...], kind: ActionKind, pair: tuple[int, int]
) -> float:
    source, target = pair
    if rank_of[source] == rank_of[target]:
        return 0.0
    return costs.transfer_s(Message(Action(source, kind, 0), target))
