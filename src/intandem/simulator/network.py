"""Ways of messages: which wire, for how long."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from intandem.simulator.operations import AT_ONCE, Way

if TYPE_CHECKING:
    from intandem.costs import CostModel
    from intandem.machine import Machine
    from intandem.simulator.operations import Operations


class Network:
    """The wires of a machine, numbered as messages of a pipeline come to need them."""

    def __init__(self, costs: CostModel, machine: Machine) -> None:
        self.machine = machine
        self._costs = costs
        self._group_of = {
            pair: group for group, pairs in enumerate(machine.shared_wires) for pair in pairs
        }
        self._has_bytes = any(costs.boundary_bytes)
        self._is_slow: dict[int | tuple[int, int], bool] = {}
        self._wire_of: dict[int | tuple[int, int], int] = {}
        self._senders: dict[int, set[int]] = {}

    def enter(self, operations: Operations) -> None:
        """Tell ``operations`` of the wires, once all ways are known."""
        operations.num_wires = len(self._wire_of)
        operations.any_order = all(len(senders) == 1 for senders in self._senders.values())

    def way(self, pair: tuple[int, int], source_stage: int, target_stage: int) -> Way:
        """Return how a message between two stages goes from the one rank to the other."""
        if pair[0] == pair[1]:
            return AT_ONCE
        link = self.machine.link_of(*pair)
        num_bytes = self._costs.message_bytes(source_stage, target_stage)
        link_s = num_bytes / link.bandwidth_bytes_per_s
        holds_sender = not self.machine.transfers_overlap
        return Way(link_s, link.latency_s, self._wire(pair), holds_sender)

    def _wire(self, pair: tuple[int, int]) -> int | None:
        """A number, if some message may keep the wire of ``pair`` for a time."""
        group = self._group_of.get(pair, pair)
        if not self._keeps_time(group):
            return None
        wire = self._wire_of.setdefault(group, len(self._wire_of))
        self._senders.setdefault(wire, set()).add(pair[0])
        return wire

    def _keeps_time(self, group: int | tuple[int, int]) -> bool:
        """Whether bytes take time on the wire of ``group``, or of a pair alone."""
        if group not in self._is_slow:
            pairs = (group,) if isinstance(group, tuple) else self.machine.shared_wires[group]
            speeds = (self.machine.link_of(*pair).bandwidth_bytes_per_s for pair in pairs)
            self._is_slow[group] = self._has_bytes and not all(map(math.isinf, speeds))
        return self._is_slow[group]


def reduction_s(costs: CostModel, machine: Machine, stage: int) -> float:
    """Seconds in which a rank adds up the gradients of ``stage`` with those of other ranks."""
    fixed_s = costs.reduction_s[stage] if costs.reduction_s else 0.0
    num_bytes = costs.gradient_bytes[stage] if costs.gradient_bytes else 0
    return fixed_s + num_bytes / machine.reduction_bytes_per_s
