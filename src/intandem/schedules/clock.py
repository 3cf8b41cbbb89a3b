"""Times of actions while a schedule is being built, one action after another.

Builders that are made for costs decide by when things would happen. They put actions on a
``Clock``, each after what it needs; every stage does the micro-batches in order, so that a kind
and a stage say which action it is. The times are those of the simulator: a message leaves when
its link is free, keeps it for bytes / bandwidth, and arrives a latency later.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from intandem.ir import Action, ActionKind, Message, Schedule

if TYPE_CHECKING:
    from intandem.costs import CostModel
    from intandem.ir import Placement
    from intandem.schedules.setting import Setting


class Clock:
    """Every rank's time, memory and order so far.

    Attributes:
        setting: what it was made for.
        rows: per rank, (stage, kind, micro-batch) of what has been put, in order.
        num_f: per stage, micro-batches whose F has been put; ``num_i`` and ``num_w`` likewise.
        pending: per rank, the stages of I's whose W has not been put, oldest first.
        now_s: per rank, when its last action ends.
        held: per rank, in the unit of the room.
        lag_s: per rank, seconds idle since its first action, less the seconds by which it has
            less to do than the busiest rank: the largest decides how long the longest rank takes.
        max_lag_s: the largest so far.
    """

    def __init__(self, setting: Setting) -> None:
        placement, costs = setting.placement, setting.costs
        ranks, stages = range(placement.num_ranks), range(placement.num_stages)
        self.setting = setting
        self.num_f = [0 for _ in stages]
        self.num_i = [0 for _ in stages]
        self.num_w = [0 for _ in stages]
        self.pending: list[deque[int]] = [deque() for _ in ranks]
        self.now_s = [0.0 for _ in ranks]
        self.held = [0.0 for _ in ranks]
        self.lag_s = _head_starts_s(placement, costs, setting.num_microbatches)
        self.max_lag_s = max(self.lag_s)
        self._rank_of, self._last_stage = placement.rank_of, placement.num_stages - 1
        self._activation, self._pending = setting.room.activation, setting.room.pending
        self._growth = setting.room.growth
        self._seconds = {kind: costs.kind_s(kind) for kind in ActionKind}
        self._start_s = [math.inf for _ in ranks]
        self._f_ready_s: list[list[float]] = [[] for _ in stages]
        self._f_ready_s[0] = [0.0] * setting.num_microbatches
        self._i_ready_s: list[list[float]] = [[] for _ in stages]
        self._links = _links(placement, costs)
        self._free_s = dict.fromkeys((link.edge for link in self._links.values()), 0.0)
        self.rows: list[list[tuple[int, ActionKind, int]]] = [[] for _ in ranks]

    def f_ready_s(self, stage: int) -> float:
        """When the input of the next F of ``stage`` is there; infinite if nobody has put it."""
        ready_s, num = self._f_ready_s[stage], self.num_f[stage]
        return ready_s[num] if num < len(ready_s) else math.inf

    def i_ready_s(self, stage: int) -> float:
        """When the input of the next I of ``stage`` is there; infinite if nobody has put it."""
        ready_s, num = self._i_ready_s[stage], self.num_i[stage]
        return ready_s[num] if num < len(ready_s) else math.inf

    def put_f(self, stage: int) -> float:
        """Put the next F of ``stage`` on its rank; return when its output is where it is read."""
        mb = self.num_f[stage]
        self.num_f[stage] = mb + 1
        rank = self._rank_of[stage]
        self.held[rank] += self._activation[stage]
        end_s = self._run(rank, (stage, ActionKind.F, mb), self._f_ready_s[stage][mb])
        if stage == self._last_stage:
            self._i_ready_s[stage].append(end_s)
            return end_s
        arrival_s = self._arrival_s(stage, stage + 1, end_s)
        self._f_ready_s[stage + 1].append(arrival_s)
        return arrival_s

    def put_i(self, stage: int) -> float:
        """Put the next I of ``stage`` on its rank; return when its output is where it is read."""
        mb = self.num_i[stage]
        self.num_i[stage] = mb + 1
        rank = self._rank_of[stage]
        self.held[rank] += self._growth[stage]
        self.pending[rank].append(stage)
        end_s = self._run(rank, (stage, ActionKind.I, mb), self._i_ready_s[stage][mb])
        if stage == 0:
            return end_s
        arrival_s = self._arrival_s(stage, stage - 1, end_s)
        self._i_ready_s[stage - 1].append(arrival_s)
        return arrival_s

    def put_w(self, rank: int, earliest_s: float = 0.0) -> None:
        """Put the oldest W that is pending on ``rank``, not before ``earliest_s``."""
        stage = self.pending[rank].popleft()
        mb = self.num_w[stage]
        self.num_w[stage] = mb + 1
        self._run(rank, (stage, ActionKind.W, mb), earliest_s)
        self.held[rank] -= self._pending[stage]

    def hop_s(self, source: int, target: int) -> float:
        """Seconds from the end of ``source`` to the start of ``target``, on a link of its own."""
        link = self._links.get((source, target))
        return 0.0 if link is None else link.seconds + self.setting.costs.latency_s

    def next_w_s(self, rank: int) -> float:
        """Seconds that the oldest pending W of ``rank`` takes."""
        return self.setting.costs.backward_weight_s[self.pending[rank][0]]

    def put_w_until(self, rank: int, time_s: float) -> None:
        """Put every W of ``rank`` that ends by ``time_s``, oldest first."""
        while self.pending[rank] and self.now_s[rank] + self.next_w_s(rank) <= time_s:
            self.put_w(rank)

    def make_room(self, rank: int, more: float) -> bool:
        """Put W's until ``rank`` can hold ``more``; say whether it can."""
        while self.held[rank] + more > self.setting.room.cap[rank]:
            if not self.pending[rank]:
                return False
            self.put_w(rank)
        return True

    def rank_span_s(self) -> float:
        """Seconds that the longest rank has taken from its first start to its last end."""
        spans = zip(self.now_s, self._start_s, strict=True)
        return max(end - start for end, start in spans)

    def makespan_s(self) -> float:
        """Seconds from the first start to the last end of all ranks."""
        return max(self.now_s) - min(self._start_s)

    def length_s(self) -> tuple[float, float]:
        """What is made short by builders that try several ways: the longest rank, then all."""
        return self.rank_span_s(), self.makespan_s()

    def schedule(self, name: str) -> Schedule:
        """The order of everything that was put."""
        rows = tuple(tuple(Action(*entry) for entry in row) for row in self.rows)
        return Schedule(name, self.setting.placement, self.setting.num_microbatches, rows)

    def _run(self, rank: int, entry: tuple[int, ActionKind, int], ready_s: float) -> float:
        now_s = self.now_s[rank]
        start_s = now_s if now_s >= ready_s else ready_s
        if not self.rows[rank]:
            self._start_s[rank] = start_s
        elif start_s > now_s:
            self.lag_s[rank] += start_s - now_s
            self.max_lag_s = max(self.max_lag_s, self.lag_s[rank])
        self.rows[rank].append(entry)
        end_s = self.now_s[rank] = start_s + self._seconds[entry[1]][entry[0]]
        return end_s

    def _arrival_s(self, source: int, target: int, end_s: float) -> float:
        link = self._links.get((source, target))
        if link is None:
            return end_s
        free_s = self._free_s[link.edge]
        free_s = (end_s if end_s >= free_s else free_s) + link.seconds
        self._free_s[link.edge] = free_s
        return free_s + self.setting.costs.latency_s


@dataclass(frozen=True, slots=True)
class _Link:
    """The directed pair of ranks that a message between two stages takes, and for how long."""

    edge: tuple[int, int]
    seconds: float


def _links(placement: Placement, costs: CostModel) -> dict[tuple[int, int], _Link]:
    """Per pair of neighbouring stages on different ranks, source first."""
    found = {}
    for stage in range(placement.num_stages - 1):
        ways = ((stage, stage + 1, ActionKind.F), (stage + 1, stage, ActionKind.I))
        for source, target, kind in ways:
            edge = (placement.rank_of[source], placement.rank_of[target])
            if edge[0] != edge[1]:
                message = Message(Action(source, kind, 0), target)
                found[source, target] = _Link(edge, costs.link_s(message))
    return found


def _head_starts_s(placement: Placement, costs: CostModel, num_microbatches: int) -> list[float]:
    """Per rank, what it has to do less what the busiest rank has to do, in seconds."""
    seconds = (costs.forward_s, costs.backward_input_s, costs.backward_weight_s)
    work_s = [
        num_microbatches * sum(kind[stage] for kind in seconds for stage in stages)
        for stages in map(placement.stages_of, range(placement.num_ranks))
    ]
    return [work - max(work_s) for work in work_s]
