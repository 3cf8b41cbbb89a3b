"""The figures of a schedule on a clock: what ``show`` and ``search`` print of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from intandem.cli.machine_options import at_its_fastest
from intandem.cli.order_files import size_of
from intandem.cli.step_figures import steps_facts, steps_object
from intandem.ir import Schedule
from intandem.lowering import lower
from intandem.simulator import (
    Allowed,
    activations,
    lower_bound_s,
    memory_over_time,
    peak_activations,
    simulate,
)
from intandem.views import units

if TYPE_CHECKING:
    from intandem.costs import CostModel
    from intandem.ir import Program, Timeline
    from intandem.machine import Machine
    from intandem.simulator import StepSequence

Objective = Literal["global", "rank"]
"""global: first start to last end over all ranks. rank: of the rank for which it is longest."""

_ROUNDING = 1e-9
"""Share of a length that adding up in another order makes."""

SPAN_NAMES = {"global": "makespan", "rank": "longest rank"}


class PeakMemory(NamedTuple):
    """Most bytes held at once, per rank.

    Attributes:
        held: of activations and pending weight gradients: what a cap in bytes is for.
        total: of these and of messages together.
    """

    held: tuple[int, ...]
    total: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Shown:
    """A program that was simulated.

    Attributes:
        program: what the ranks would execute, transfers included.
        timeline: when.
        costs: of its stages.
        lower_bound_s: what no schedule is shorter than, by the objective.
        objective: which of its two lengths is compared with that.
        allowed: which schedules the bound is for.
        machine: that it runs on; None for the links of ``costs``.
        steps: several steps one after another, if they were asked for.
    """

    program: Program
    timeline: Timeline
    costs: CostModel
    lower_bound_s: float
    objective: Objective = "global"
    allowed: str = "any schedule on this placement"
    machine: Machine | None = None
    steps: StepSequence | None = None

    @property
    def title(self) -> str:
        """Name and sizes."""
        return " · ".join([self.program.name, *size_of(self.program)])

    @property
    def span_s(self) -> float:
        """The length that the objective asks for."""
        return self.timeline.makespan_s if self.objective == "global" else self.timeline.rank_span_s

    @property
    def above_bound(self) -> float:
        """How much longer it is than that, as a share: 0.02 is 2%."""
        return self.span_s / self.lower_bound_s - 1 if self.lower_bound_s > 0 else 0.0

    @property
    def weight_copies(self) -> int:
        """How often the model's weights are held, by all ranks together."""
        return self.program.placement.num_replicas

    @property
    def peak_activations(self) -> tuple[int, ...]:
        """Most stage activations held at once, per rank."""
        return peak_activations(self.timeline)

    @property
    def peak_parts(self) -> tuple[float, ...]:
        """The same, counted in P-ths of the model: comparable between numbers of stages."""
        per_part = self.program.placement.num_stages / self.program.num_ranks
        return tuple(count / per_part for count in self.peak_activations)

    @property
    def peak_memory(self) -> PeakMemory | None:
        """Most bytes held at once; None where the costs have none."""
        if not self.costs.activation_bytes:
            return None
        rows = memory_over_time(self.program, self.costs, self.machine)
        return PeakMemory(
            tuple(max((use.held_bytes for use in row), default=0) for row in rows),
            tuple(max((use.total_bytes for use in row), default=0) for row in rows),
        )

    @property
    def figures(self) -> str:
        """Lengths and bubble in one line."""
        return " · ".join(
            [
                f"makespan {units.duration(self.timeline.makespan_s)}",
                f"longest rank {units.duration(self.timeline.rank_span_s)}",
                f"bubble ratio {units.share(self.timeline.bubble_ratio)}",
                f"within {share_above(self.above_bound)} of the lower bound",
            ]
        )

    def as_object(self) -> dict[str, object]:
        """Every figure and every rank's order, for JSON."""
        program, timeline, memory = self.program, self.timeline, self.peak_memory
        order = program.compute_order()
        return {
            "schedule": program.name,
            "num_ranks": program.num_ranks,
            "num_microbatches": program.num_microbatches,
            "num_stages": program.placement.num_stages,
            "placement": program.placement.rank_of,
            "replicas": program.placement.replicas,
            "weight_copies": self.weight_copies,
            "makespan_s": timeline.makespan_s,
            "rank_span_s": timeline.rank_span_s,
            "bubble_ratio": timeline.bubble_ratio,
            "rank_bubble_ratio": timeline.rank_bubble_ratio,
            "peak_activations": self.peak_activations,
            "peak_held_bytes": None if memory is None else memory.held,
            "peak_bytes": None if memory is None else memory.total,
            "objective": self.objective,
            "lower_bound_s": self.lower_bound_s,
            "above_bound": self.above_bound,
            "steps": steps_object(self.steps),
            "actions": [[str(action) for action in row] for row in order.actions],
            "overlaps": sorted(order.overlaps),
        }

    def facts(self) -> tuple[tuple[str, str, str], ...]:
        """Every figure as (what, value, what is to say of it), for reading."""
        shown, peaks = self.timeline, self.peak_activations
        within = f"{share_above(self.above_bound)} of it"
        bound = f"for {self.allowed}; {SPAN_NAMES[self.objective]} within {within}"
        copies = self.weight_copies
        return (
            ("makespan", units.duration(shown.makespan_s), _idle(shown.bubble_ratio)),
            ("longest rank", units.duration(shown.rank_span_s), _idle(shown.rank_bubble_ratio)),
            ("lower bound", units.duration(self.lower_bound_s), bound),
            (
                "activations",
                str(max(peaks, default=0)),
                f"of a stage at most; per rank: {' '.join(map(str, peaks))}",
            ),
            *self._memory_fact(),
            *steps_facts(self.steps),
            (
                "weights",
                f"{copies}\N{MULTIPLICATION SIGN}",
                "the model, over all ranks" + ("" if copies == 1 else "; gradients are added up"),
            ),
        )

    def _memory_fact(self) -> tuple[tuple[str, str, str], ...]:
        if (peaks := self.peak_memory) is None:
            return ()
        note = f"of activations and pending weight gradients at most; {_each_size(peaks.held)}"
        held = ("memory", units.size(max(peaks.held)), note)
        if peaks.total == peaks.held:
            return (held,)
        note = f"at most, though no cap counts messages; {_each_size(peaks.total)}"
        return held, ("with messages", units.size(max(peaks.total)), note)

    def activations(self) -> tuple[tuple[tuple[float, int], ...], ...]:
        """Per rank, the stage activations held over time."""
        return activations(self.timeline)


def show_order(
    order: Schedule | Program,
    costs: CostModel,
    objective: Objective,
    cap: int | None = None,
    machine: Machine | None = None,
) -> Shown:
    """Simulate ``order``.

    Args:
        order: what the ranks are to do.
        costs: of its stages.
        objective: which length is compared with the lower bound.
        cap: stage activations that the schedules may hold which the bound is for.
        machine: of as many ranks. If given, its links count, and not those of ``costs``; the bound
            is that of its fastest link everywhere.

    Raises:
        ScheduleVerifyError: if it breaks a rule.
        ValueError: if the costs are of another number of stages, or the machine of ranks.
    """
    program = lower(order) if isinstance(order, Schedule) else order
    timeline = simulate(program, costs, machine)
    if program.compute_order().is_forward_only:
        least_s = _forwards_bound_s(program, costs, objective)
    else:
        allowed = Allowed(objective, max_activations=cap)
        fastest, placement = at_its_fastest(costs, machine), program.placement
        least_s = lower_bound_s(fastest, placement, program.num_microbatches, allowed)
    within = "" if cap is None else f" within {cap} activations"
    which = f"any schedule on this placement{within}"
    return Shown(program, timeline, costs, least_s, objective, which, machine)


def _forwards_bound_s(program: Program, costs: CostModel, objective: Objective) -> float:
    """The bound of orders without backwards, transfers left aside, as the way back would count."""
    placement, num_microbatches = program.placement, program.num_microbatches
    zeros = (0.0,) * costs.num_stages
    forwards = replace(
        costs,
        backward_input_s=zeros,
        backward_weight_s=zeros,
        backward_s=zeros,
        overlapped_s=(),
        latency_s=0.0,
        bandwidth_bytes_per_s=math.inf,
    )
    if objective == "global":
        return lower_bound_s(forwards, placement, num_microbatches)
    seconds = forwards.forward_s
    orders = (program.actions(rank) for rank in range(program.num_ranks))
    return max(sum(seconds[action.stage] for action in order) for order in orders)


def share_above(ratio: float) -> str:
    """Write a ratio that is below 0 by no more than rounding as 0."""
    return units.share(0.0 if -_ROUNDING < ratio < 0 else ratio)


def _each_size(sizes: tuple[int, ...]) -> str:
    return f"per rank: {' '.join(units.size(size).replace(' ', '') for size in sizes)}"


def _idle(ratio: float) -> str:
    return f"bubble ratio {units.share(ratio)}"
