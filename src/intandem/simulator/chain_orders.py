"""Compute orders of a chain of stages → operations: an action with its messages is one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from intandem.ir import Action, ActionKind
from intandem.ir.codes import KINDS, NUM_KINDS, ActionCodes
from intandem.simulator.compiled import Compiled, Shown
from intandem.simulator.operations import AT_ONCE, Operations, Way

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet

    from intandem.costs import CostModel
    from intandem.ir import Placement, Schedule
    from intandem.simulator.network import Network


class _Messages(NamedTuple):
    """What an action waits for and hands over, as (source stage, target stage); None: nothing."""

    takes: tuple[int, int] | None
    gives: tuple[int, int] | None
    way: Way


class ChainLanes:
    """The lanes: ``ActionCodes``'s, moved up by a whole pipeline for each replica.

    Attributes:
        operations: what they are part of.
        codes: how actions are numbered.
        moved: of each micro-batch, how far its codes are moved; empty if none is.
    """

    def __init__(
        self, placement: Placement, counts: tuple[int, int], costs: CostModel, network: Network
    ) -> None:
        """``counts`` are micro-batches of a step and of all steps."""
        num_microbatches, count = counts
        self._costs = costs
        self._messages: list[_Messages] = []
        self.operations = Operations(count)
        self.codes = ActionCodes(placement.num_stages, count)
        for replica, rank_of in enumerate(placement.rows):
            for stage in range(placement.num_stages):
                for kind in KINDS:
                    self._add(Action(stage, kind, 0), replica, rank_of, network)
        network.enter(self.operations)
        self.moved: list[int] = []
        if placement.replicas:
            stride = placement.num_stages * NUM_KINDS * count
            self.moved = [
                placement.replica_of(mb, num_microbatches) * stride
                for mb in range(num_microbatches)
            ]

    def _add(
        self, action: Action, replica: int, rank_of: tuple[int, ...], network: Network
    ) -> None:
        stage, step = action.stage, 1 if action.kind is ActionKind.F else -1
        source, target = stage - step, stage + step
        linked = () if action.kind is ActionKind.W else range(len(rank_of))
        takes = (source, stage) if source in linked else None
        gives, way = None, AT_ONCE
        if target in linked:
            gives = (stage, target)
            way = network.way((rank_of[stage], rank_of[target]), stage, target)
        self._messages.append(_Messages(takes, gives, way))
        hold_s = self._costs.seconds(action)
        key = (replica, stage, action.kind)
        self.operations.lane(key, hold_s, takes=takes, gives=gives, way=way)

    def pair(self, first: int, second: int, hold_s: float) -> list[int]:
        """Return the operations of two that overlap; the second of them holds the rank for both."""
        lane, count = self.operations.lane, self.operations.count
        messages = [self._messages[number // count] for number in (first, second)]
        lanes = (
            lane(("wait", messages[0].takes), takes=messages[0].takes),
            lane(("hold", hold_s, messages[1].takes), hold_s, takes=messages[1].takes),
            *(lane(("give", *m), gives=m.gives, way=m.way) for m in messages),
        )
        indices = (first % count, second % count, first % count, second % count)
        return [own * count + index for own, index in zip(lanes, indices, strict=True)]


def compile_schedule(
    schedule: Schedule, costs: CostModel, network: Network, num_steps: int
) -> Compiled:
    """Return the operations of a valid ``schedule``."""
    count = schedule.num_microbatches * num_steps
    lanes = ChainLanes(schedule.placement, (schedule.num_microbatches, count), costs, network)
    rows = [lanes.codes.of_actions(row) for row in schedule.actions]
    if lanes.moved:
        rows = [[code + lanes.moved[code % count] for code in row] for row in rows]
    shown: list[list[Shown] | None] = [None] * len(rows)
    slots: dict[int, set[int]] = {}
    for rank, slot in schedule.overlaps:
        slots.setdefault(rank, set()).add(slot)
    for rank, paired in slots.items():
        actions = schedule.actions[rank]
        rows[rank], shown[rank] = _spread(lanes, costs, (actions, rows[rank]), paired)
    return Compiled(lanes.operations, rows, shown, [False] * len(rows), [[] for _ in rows])


def _spread(
    lanes: ChainLanes,
    costs: CostModel,
    row: tuple[Sequence[Action], Sequence[int]],
    paired: AbstractSet[int],
) -> tuple[list[int], list[Shown]]:
    """Put the operations of pairs in the place of their two actions."""
    operations: list[int] = []
    shown: list[Shown] = []
    actions, codes = row
    for slot, (action, code) in enumerate(zip(actions, codes, strict=True)):
        place = len(operations)
        if slot in paired:
            operations += lanes.pair(code, codes[slot + 1], costs.pair_s(action, actions[slot + 1]))
            shown += [Shown(a, place + 1, place + 1) for a in actions[slot : slot + 2]]
        elif slot - 1 not in paired:
            operations.append(code)
            shown.append(Shown(action, place, place))
    return operations, shown
