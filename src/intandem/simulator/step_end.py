"""What comes after the last action of a step: adding up gradients, and the optimizer.

A stage that several ranks hold is added up by all of them at once: none begins before all have
come to it. Ranks go through their stages in ascending order. A stage held once is added up with
ranks of other pipelines, which come to it at the same time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intandem.simulator.network import reduction_s

if TYPE_CHECKING:
    from collections.abc import Iterator

    from intandem.costs import CostModel
    from intandem.ir import Placement
    from intandem.machine import Machine
    from intandem.simulator.operations import Operations


class StepEnd:
    """Makes the operations that each rank ends a step with."""

    def __init__(
        self, placement: Placement, costs: CostModel, machine: Machine, operations: Operations
    ) -> None:
        self._placement = placement
        self._costs = costs
        self._machine = machine
        self._operations = operations
        self._stages_of: dict[int, set[int]] = {}
        for rank_of in placement.rows:
            for stage, rank in enumerate(rank_of):
                self._stages_of.setdefault(rank, set()).add(stage)

    def reduction(self, rank: int) -> list[int]:
        """Add up the gradients of ``rank`` with those of others."""
        return [lane * self._operations.count for lane in self._reduction_lanes(rank)]

    def optimizer(self, rank: int) -> int:
        """Update the weights of ``rank``: one operation, that holds it for no time if need be."""
        stages = self._stages_of[rank] if self._costs.optimizer_s else ()
        hold_s = sum(self._costs.optimizer_s[stage] for stage in sorted(stages))
        return self._operations.lane(("optimizer", hold_s), hold_s) * self._operations.count

    def _reduction_lanes(self, rank: int) -> Iterator[int]:
        lane = self._operations.lane
        for stage in sorted(self._stages_of[rank]):
            others = [other for other in self._placement.holders_of(stage) if other != rank]
            for other in others:
                here = ("here", stage, rank, other)
                yield lane(here, gives=here)
            for other in others:
                there = ("here", stage, other, rank)
                yield lane(("wait", *there), takes=there)
            hold_s = reduction_s(self._costs, self._machine, stage)
            yield lane(("reduce", hold_s), hold_s)
