"""What is searched over, as flat lists of numbers: no objects in inner loops.

A **lane** is one kind of action of one stage, ``kind * num_stages + stage`` with kinds F, I, W (or
F, B where backwards are not split). An **operation** is one micro-batch in a lane,
``lane * num_microbatches + microbatch``. A row is what one rank does, in order; within a lane
micro-batches come in ascending order, which costs nothing as they are all alike.

    operation          needs                    hands over to
    F of stage s       F of s - 1               F of s + 1; of the last stage its own I
    I or B of stage s  that of s + 1            that of s - 1
    W                  its I, earlier in its row

so that every operation waits for at most one other, apart from what comes before it in its row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from intandem.ir import Action, ActionKind, Message

if TYPE_CHECKING:
    from collections.abc import Iterable

    from intandem.costs import CostModel
    from intandem.ir import Placement

Objective = Literal["global", "rank"]
Rows = list[list[int]]
T = TypeVar("T")

_SPLIT = (ActionKind.F, ActionKind.I, ActionKind.W)
_WHOLE = (ActionKind.F, ActionKind.B)


@dataclass(frozen=True, slots=True)
class Memory:
    """What a stage's actions take and free on their rank, in one unit: bytes or activations.

    Attributes:
        forward: per stage, taken when F starts and held until its I or B ends.
        backward: per stage, taken besides while I or B runs: what a recomputation brings back.
        pending: per stage, kept from the end of I to the end of W.
    """

    forward: tuple[int, ...]
    backward: tuple[int, ...]
    pending: tuple[int, ...]

    def extra(self, stage: int) -> int:
        """Most that an I of ``stage`` needs beyond what its F has taken."""
        return max(self.backward[stage], self.pending[stage] - self.forward[stage], 0)


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything that decides what operations there are and what they cost.

    Attributes:
        costs: of all stages.
        placement: one rank per stage.
        num_microbatches: M.
        split: whether backwards are I and W, or B.
        objective: what is made short: the makespan or the longest rank's span.
        memory: what actions take.
        caps: what each rank may hold, in the unit of ``memory``; None for no limit.
        recompute: stages that run their forward again before each backward.
    """

    costs: CostModel
    placement: Placement
    num_microbatches: int
    split: bool
    objective: Objective
    memory: Memory
    caps: tuple[int, ...] | None
    recompute: frozenset[int] = frozenset()

    @property
    def kinds(self) -> tuple[ActionKind, ...]:
        """Kinds of action, in the order of lanes."""
        return _SPLIT if self.split else _WHOLE

    @property
    def num_lanes(self) -> int:
        """Kinds times stages."""
        return len(self.kinds) * self.placement.num_stages

    def lane_s(self, lane: int) -> float:
        """Seconds of an operation in ``lane``."""
        kind, stage = divmod(lane, self.placement.num_stages)
        seconds = self.costs.kind_s(self.kinds[kind])[stage]
        again = kind == 1 and stage in self.recompute
        return seconds + self.costs.forward_s[stage] if again else seconds

    def taken(self, lane: int) -> int:
        """Memory that an operation in ``lane`` takes when it starts."""
        kind, stage = divmod(lane, self.placement.num_stages)
        return (self.memory.forward[stage], self.memory.backward[stage], 0)[kind]

    def freed(self, lane: int) -> int:
        """Memory that an operation in ``lane`` frees when it ends."""
        kind, stage = divmod(lane, self.placement.num_stages)
        memory = self.memory
        kept = memory.pending[stage] if self.split else 0
        whole = memory.forward[stage] + memory.backward[stage]
        return (0, whole - kept, memory.pending[stage])[kind]

    def next_lane(self, lane: int) -> int | None:
        """Lane that waits for ``lane``, if any."""
        num_stages = self.placement.num_stages
        kind, stage = divmod(lane, num_stages)
        if kind == 0:
            return lane + 1 if stage + 1 < num_stages else num_stages + stage
        return lane - 1 if kind == 1 and stage > 0 else None

    def hop_s(self, lane: int) -> tuple[float, float]:
        """Latency and seconds on the link, from ``lane`` to the lane that waits for it."""
        following = self.next_lane(lane)
        if following is None:
            return 0.0, 0.0
        num_stages, rank_of = self.placement.num_stages, self.placement.rank_of
        source, target = lane % num_stages, following % num_stages
        if rank_of[source] == rank_of[target]:
            return 0.0, 0.0
        kind = self.kinds[lane // num_stages]
        message = Message(Action(source, kind, 0), target)
        return self.costs.latency_s, self.costs.link_s(message)


class Problem:
    """A layout, spread out over operations. Lists are read, never written.

    Attributes:
        num_operations: their number; also the index of a place that nothing reads.
        seconds: per operation.
        busy_s: per rank, of all its operations.
        following: per operation, the one that waits for it; ``num_operations`` where none does.
        previous: per operation, the one that it waits for; -1 where none.
        delay_s: per operation, latency to the following one.
        link_s: per operation, seconds that its message keeps the link.
        link: per operation, number of its link.
        arrival: per operation, 0 where it waits for none, else -1; one more at the end.
        rank: per operation.
        taken: per operation, memory taken when it starts.
        freed: per operation, memory freed when it ends.
        caps: per rank; huge where there is no limit.
        stages: per rank, its stages ascending.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.num_ranks = layout.placement.num_ranks
        self.num_stages = layout.placement.num_stages
        self.num_microbatches = count = layout.num_microbatches
        lanes = range(layout.num_lanes)
        self.num_operations = total = count * layout.num_lanes
        rank_of = layout.placement.rank_of
        lane_rank = [rank_of[lane % self.num_stages] for lane in lanes]
        hops = [layout.hop_s(lane) for lane in lanes]
        nexts = [layout.next_lane(lane) for lane in lanes]
        self.seconds = _spread((layout.lane_s(lane) for lane in lanes), count)
        self.busy_s = [0.0] * self.num_ranks
        for lane in lanes:
            self.busy_s[lane_rank[lane]] += count * layout.lane_s(lane)
        self.delay_s = _spread((latency for latency, _ in hops), count)
        self.link_s = _spread((busy for _, busy in hops), count)
        self.link = _spread(
            (
                lane_rank[lane] * self.num_ranks + lane_rank[lane if to is None else to]
                for lane, to in zip(lanes, nexts, strict=True)
            ),
            count,
        )
        self.rank = _spread(lane_rank, count)
        self.taken = _spread((layout.taken(lane) for lane in lanes), count)
        self.freed = _spread((layout.freed(lane) for lane in lanes), count)
        self.following = [total] * total
        self.previous = [-1] * total
        for lane, to in zip(lanes, nexts, strict=True):
            if to is not None:
                here, there = lane * count, to * count
                self.following[here : here + count] = range(there, there + count)
                self.previous[there : there + count] = range(here, here + count)
        waits = {to for to in nexts if to is not None}
        self.arrival = [*_spread((-1.0 if lane in waits else 0.0 for lane in lanes), count), 0.0]
        self.caps = list(layout.caps or (1 << 62,) * self.num_ranks)
        self.stages = [layout.placement.stages_of(rank) for rank in range(self.num_ranks)]

    def actions(self, rows: Rows) -> tuple[tuple[Action, ...], ...]:
        """Return ``rows`` as actions."""
        kinds, stages, count = self.layout.kinds, self.num_stages, self.num_microbatches
        table = [
            Action(lane % stages, kinds[lane // stages], mb)
            for lane in range(self.layout.num_lanes)
            for mb in range(count)
        ]
        return tuple(tuple(table[operation] for operation in row) for row in rows)


def _spread(values: Iterable[T], count: int) -> list[T]:
    return [value for value in values for _ in range(count)]
