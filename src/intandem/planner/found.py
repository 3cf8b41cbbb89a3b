"""What a search returns, and what it says on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from intandem.ir import Schedule
    from intandem.planner.problem import Objective


@dataclass(frozen=True, slots=True)
class Progress:
    """The best so far.

    Attributes:
        value_s: what the objective measures, in seconds.
        lower_bound_s: that nothing is below.
        method: what found it.
        share: of the work budget spent, 0 to 1.
    """

    value_s: float
    lower_bound_s: float
    method: str
    share: float


@dataclass(frozen=True, slots=True)
class Found:
    """A schedule that was searched for.

    Attributes:
        schedule: valid, within the cap.
        objective: what was made short: ``global`` (makespan) or ``rank`` (longest rank's span).
        makespan_s: first start to last end over all ranks, as ``simulate`` has it.
        rank_span_s: longest (last end - first start) of any one rank.
        peak_activations: most stage activations held at once, per rank.
        peak_held_bytes: most bytes of activations (of inputs, where a forward is to be run again)
            and of pending weight gradients held at once, per rank: what a cap in bytes is for.
            Messages come on top; ``peak_bytes`` of ``intandem.simulator`` has them too. None where
            the costs have no ``activation_bytes``.
        lower_bound_s: what the objective is at least, for every schedule that was allowed.
        proven: whether nothing that was allowed is shorter.
        method: what found it.
        recompute: stages that run their forward again; give it to ``lower``.
    """

    schedule: Schedule
    objective: Objective
    makespan_s: float
    rank_span_s: float
    peak_activations: tuple[int, ...]
    peak_held_bytes: tuple[int, ...] | None
    lower_bound_s: float
    proven: bool
    method: str
    recompute: frozenset[int] = frozenset()

    @property
    def value_s(self) -> float:
        """What the objective measures."""
        return self.makespan_s if self.objective == "global" else self.rank_span_s

    @property
    def gap(self) -> float:
        """Share of the lower bound by which the objective may at most be too long."""
        return self.value_s / self.lower_bound_s - 1.0 if self.lower_bound_s else 0.0
