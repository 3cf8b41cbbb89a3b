"""What the demo found out, as text and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from intandem.views.units import duration, share

GRADIENT_TOLERANCE = 1e-12
"""Relative; float64 gradients of other schedules and cuts differ by rounding alone."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything the demo measured; what comes with training is 0 or None before it.

    Attributes:
        schedule: its name.
        num_ranks: ranks it ran on.
        num_microbatches: per step.
        num_parameters: of the model.
        byte_entropy: loss of a model that only knows how often each byte occurs; like every loss
            here in nats per byte.
        max_gradient_error: against one process, float64, largest over parameters.
        report: path of the HTML report.
        num_steps: trained.
        training_s: seconds of training, held-out evaluation and comparison included.
        training_loss: of the last step.
        heldout_loss: at the end, on files that were not trained on.
        step_s: median seconds of a step, optimizer included.
        tokens_per_s: trained on, by that median; a token is a byte.
        speed_ratio: against one process on one core, steps taken in turn; median.
        makespan_s: of the step of median makespan, which is the one that the report draws.
        bubble_ratio: measured, of the same step.
        planned_bubble_ratio: of the simulated step.
    """

    schedule: str
    num_ranks: int
    num_microbatches: int
    num_parameters: int
    byte_entropy: float
    max_gradient_error: float
    report: str
    num_steps: int = 0
    training_s: float = 0.0
    training_loss: float | None = None
    heldout_loss: float | None = None
    step_s: float = 0.0
    tokens_per_s: float = 0.0
    speed_ratio: float | None = None
    makespan_s: float | None = None
    bubble_ratio: float | None = None
    planned_bubble_ratio: float | None = None

    @property
    def gradients_equal(self) -> bool:
        """Whether the gradients are those of one process; false for NaN."""
        return self.max_gradient_error <= GRADIENT_TOLERANCE

    @property
    def gradient_line(self) -> str:
        """The same for reading."""
        verdict = "equal" if self.gradients_equal else "DIFFER from"
        return (
            f"gradients {verdict} one process: max relative error "
            f"{self.max_gradient_error:.1e} (float64)"
        )

    def as_json(self) -> str:
        """One object with every attribute."""
        return json.dumps(asdict(self), indent=2)

    def as_text(self) -> str:
        """The same for reading, a line for each thing."""
        bubble, planned = (
            "unknown" if ratio is None else share(ratio)
            for ratio in (self.bubble_ratio, self.planned_bubble_ratio)
        )
        drawn = "the step drawn in the report"
        if self.makespan_s is not None:
            drawn += f", makespan {duration(self.makespan_s)}"
        steps = f"{self.num_steps} steps in {self.training_s:.0f} s"
        rows = (
            ("trained", f"{steps}, {self.tokens_per_s:,.0f} tokens/s"),
            ("held-out loss", f"{_number(self.heldout_loss, 3)} nats per byte"),
            (
                "byte entropy",
                f"{self.byte_entropy:.3f} nats per byte: what byte counts alone reach",
            ),
            ("speed", f"{_number(self.speed_ratio, 2)} times one process on one core, same run"),
            ("bubble", f"{bubble} measured, {planned} planned: {drawn}"),
            ("report", self.report),
        )
        return "\n".join(f"{name:<14} {value}" for name, value in rows)


def _number(value: float | None, digits: int) -> str:
    return "unknown" if value is None else f"{value:.{digits}f}"
