"""Compute orders of a chain of stages → operations: an action with its messages is one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from intandem.ir import Action, ActionKind
from intandem.ir.codes import KINDS, NUM_KINDS, ActionCodes
from intandem.simulator.compiled import Compiled, Shown
from intandem.simulator.operations import AT_ONCE, Operations, Way

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intandem.costs import CostModel
    from intandem.ir import Placement, Schedule
    from intandem.simulator.network import Network


class _Lane(NamedTuple):
    """What is known of a lane; messages by (source stage, target stage), None for none.

    Attributes:
        action: one of it.
        takes: messages that it waits for.
        gives: messages that it hands over.
        way: how these travel.
    """

    action: Action
    takes: tuple[int, int] | None
    gives: tuple[int, int] | None
    way: Way


class _Pair(NamedTuple):
    """Lanes of two actions that overlap.

    Attributes:
        wait: for the message of the second.
        hold: wait for that of the first, hold the rank for both, hand over the first's.
        give: hand over the second's.
    """

    wait: int
    hold: int
    give: int


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
        self._lanes: list[_Lane] = []
        self._pairs: dict[tuple[int, int], _Pair] = {}
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
        self._lanes.append(_Lane(action, takes, gives, way))
        hold_s = self._costs.seconds(action)
        key = (replica, stage, action.kind)
        self.operations.lane(key, hold_s, takes=takes, gives=gives, way=way)

    def pair(self, first: int, second: int) -> _Pair:
        """Return the lanes of two that overlap, given their own."""
        known = self._pairs.get((first, second))
        if known is not None:
            return known
        lane, one, other = self.operations.lane, self._lanes[first], self._lanes[second]
        pair = self._pairs[first, second] = _Pair(
            wait=lane(("wait", second), takes=other.takes),
            hold=lane(
                ("pair", first, second),
                self._costs.pair_s(one.action, other.action),
                takes=one.takes,
                gives=one.gives,
                way=one.way,
            ),
            give=lane(("give", second), gives=other.gives, way=other.way),
        )
        return pair


def compile_schedule(
    schedule: Schedule, rows: list[list[int]], costs: CostModel, network: Network, count: int
) -> Compiled:
    """Return the operations of a valid ``schedule``.

    Args:
        schedule: with its pairs.
        rows: of each rank, the codes of its actions.
        costs: of as many stages.
        network: that messages go over.
        count: micro-batches of all steps: what the codes are made with.
    """
    lanes = ChainLanes(schedule.placement, (schedule.num_microbatches, count), costs, network)
    if lanes.moved:
        rows = [[code + lanes.moved[code % count] for code in row] for row in rows]
    shown: list[Shown | None] = [None] * len(rows)
    slots: dict[int, list[int]] = {}
    for rank, slot in schedule.overlaps:
        slots.setdefault(rank, []).append(slot)
    for rank, paired in slots.items():
        rows[rank], places = _spread(lanes, rows[rank], sorted(paired))
        shown[rank] = Shown(schedule.actions[rank], places, places)
    none = [Shown((), (), ())] * len(rows)
    return Compiled(lanes.operations, rows, shown, [False] * len(rows), none)


def _spread(
    lanes: ChainLanes, codes: list[int], slots: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Put the operations of pairs in the place of their two actions.

    Args:
        lanes: of the pipeline.
        codes: the actions of a rank.
        slots: of the first of each pair, ascending.

    Returns:
        The operations, and the place of each action in them.
    """
    operations: list[int] = []
    places: list[int] = []
    count, done = lanes.operations.count, 0
    for slot in slots:
        if slot > done:
            places += range(len(operations), len(operations) + slot - done)
            operations += codes[done:slot]
        first, second = codes[slot], codes[slot + 1]
        wait, hold, give = lanes.pair(first // count, second // count)
        place, other = len(operations) + 1, second % count
        operations += (wait * count + other, hold * count + first % count, give * count + other)
        places += (place, place)
        done = slot + 2
    places += range(len(operations), len(operations) + len(codes) - done)
    operations += codes[done:]
    return operations, places
