"""The figures of a schedule on a clock: what ``show`` and ``search`` print of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from intandem.cli.order_files import size_of
from intandem.ir import Schedule
from intandem.lowering import lower
from intandem.simulator import activations, lower_bound_s, peak_activations, simulate
from intandem.views import units

if TYPE_CHECKING:
    from intandem.costs import CostModel
    from intandem.ir import Program, Timeline

Objective = Literal["global", "rank"]
"""global: first start to last end over all ranks. rank: of the rank for which it is longest."""

SPAN_NAMES = {"global": "makespan", "rank": "longest rank"}


@dataclass(frozen=True, slots=True)
class Shown:
    """A program that was simulated.

    Attributes:
        program: what the ranks would execute, transfers included.
        timeline: when.
        lower_bound_s: what no schedule is shorter than, by the objective.
        objective: which of its two lengths is compared with that.
        allowed: which schedules the bound is for.
    """

    program: Program
    timeline: Timeline
    lower_bound_s: float
    objective: Objective = "global"
    allowed: str = "any schedule on this placement"

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
    def figures(self) -> str:
        """Lengths and bubble in one line."""
        return " · ".join(
            [
                f"makespan {units.duration(self.timeline.makespan_s)}",
                f"longest rank {units.duration(self.timeline.rank_span_s)}",
                f"bubble ratio {units.share(self.timeline.bubble_ratio)}",
                f"within {units.share(max(self.above_bound, 0.0))} of the lower bound",
            ]
        )

    def as_object(self) -> dict[str, object]:
        """Every figure and every rank's order, for JSON."""
        program, timeline = self.program, self.timeline
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
            "objective": self.objective,
            "lower_bound_s": self.lower_bound_s,
            "above_bound": self.above_bound,
            "actions": [[str(action) for action in row] for row in order.actions],
            "overlaps": sorted(order.overlaps),
        }

    def facts(self) -> tuple[tuple[str, str, str], ...]:
        """Every figure as (what, value, what is to say of it), for reading."""
        shown, peaks = self.timeline, self.peak_activations
        within = f"{units.share(max(self.above_bound, 0.0))} of it"
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
            (
                "weights",
                f"{copies}\N{MULTIPLICATION SIGN}",
                "the model, over all ranks" + ("" if copies == 1 else "; gradients are added up"),
            ),
        )

    def activations(self) -> tuple[tuple[tuple[float, int], ...], ...]:
        """Per rank, the stage activations held over time."""
        return activations(self.timeline)


def show_order(order: Schedule | Program, costs: CostModel, objective: Objective) -> Shown:
    """Simulate ``order``.

    Raises:
        ScheduleVerifyError: if it breaks a rule.
        ValueError: if the costs are of another number of stages.
    """
    program = lower(order) if isinstance(order, Schedule) else order
    timeline = simulate(program, costs)
    return Shown(program, timeline, bound_s(program, costs, objective), objective)


def bound_s(program: Program, costs: CostModel, objective: Objective) -> float:
    """Return what no schedule of the program's stages on its ranks is shorter than, in seconds."""
    placement, num_microbatches = program.placement, program.num_microbatches
    return lower_bound_s(costs, placement, num_microbatches)


def _idle(ratio: float) -> str:
    return f"bubble ratio {units.share(ratio)}"
