"""What builders that are made for costs work with: placement, costs, memory, micro-batches.

An activation is held from the start of F to the end of I, and what W still needs of it from there
to the end of W. If the cost model says what both take, memory is in bytes; otherwise it is
counted in stage activations, and I frees nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from intandem.costs import CostModel

if TYPE_CHECKING:
    from intandem.ir import Placement


@dataclass(frozen=True, slots=True)
class Room:
    """What every stage takes, and what every rank may hold, in one unit.

    Attributes:
        activation: per stage, held for a micro-batch from the start of F to the end of I.
        pending: per stage, held for it from there to the end of W.
        cap: per rank, the most that it may hold at once.
    """

    activation: tuple[float, ...]
    pending: tuple[float, ...]
    cap: tuple[float, ...]

    @property
    def growth(self) -> tuple[float, ...]:
        """Per stage, what I takes beyond what its F has taken; below 0 where it frees some."""
        sizes = zip(self.pending, self.activation, strict=True)
        return tuple(pending - activation for pending, activation in sizes)


@dataclass(frozen=True, slots=True)
class Setting:
    """What a builder is given: where stages are, what they cost, and what ranks may hold."""

    placement: Placement
    costs: CostModel
    room: Room
    num_microbatches: int


def setting_within(
    placement: Placement,
    num_microbatches: int,
    costs: CostModel | None,
    max_activations: float,
) -> Setting:
    """Let every rank hold ``max_activations`` activations of the mean size of its stages.

    Args:
        placement: holds every stage once.
        num_microbatches: M.
        costs: by default, every action takes one second and no transfer takes any.
        max_activations: on every rank; where I frees a part, what is left counts as that part.

    Raises:
        ValueError: if ``max_activations`` is less than 1, or ``costs`` are of another number of
            stages.
    """
    if max_activations < 1:
        msg = f"{max_activations=}; expected at least 1 stage activation"
        raise ValueError(msg)
    costs = costs or CostModel.uniform(placement.num_stages)
    if costs.num_stages != placement.num_stages:
        got = f"costs of {costs.num_stages} stages for {placement.num_stages} stages"
        msg = f"{got}; expected the same number"
        raise ValueError(msg)
    activation: tuple[float, ...] = (1.0,) * costs.num_stages
    pending = activation
    if any(costs.activation_bytes):
        activation, pending = costs.activation_bytes, costs.pending_bytes
    stages_of = [placement.stages_of(rank) for rank in range(placement.num_ranks)]
    means = [sum(activation[s] for s in stages) / len(stages) for stages in stages_of]
    cap = tuple(max_activations * mean for mean in means)
    return Setting(placement, costs, Room(activation, pending, cap), num_microbatches)


def has_equal_stages(costs: CostModel) -> bool:
    """Whether every stage takes as long as any other."""
    seconds = (costs.forward_s, costs.backward_input_s, costs.backward_weight_s)
    return all(len(set(kind)) == 1 for kind in seconds)
