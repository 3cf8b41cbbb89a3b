"""What a report of a run shows, as one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from intandem.ir import Program, Timeline
    from intandem.ir.analysis import IdleParts, PathStep

StepFunction = tuple[tuple[float, int], ...]
"""(time in seconds, count from then on) in order of time; 0 before the first."""


@dataclass(frozen=True, slots=True)
class OptimizerSpan:
    """A rank's optimizer update. Times are seconds since the step began."""

    rank: int
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class StageRow:
    """One stage of the pipeline. What is not known is None.

    Attributes:
        stage: index in pipeline order.
        ranks: that hold it; several where the model is held more than once.
        blocks: what it holds, such as ``blocks.0 … blocks.3``.
        num_parameters: elements of its parameters.
        parameter_bytes: of the same.
        num_waiting: elements of those whose gradients can wait for W.
        planned_forward_s: of one micro-batch, as are the other times.
        planned_backward_s: I and W together where they are split.
        measured_forward_s: median over micro-batches.
        measured_backward_s: median over micro-batches, I and W together.
        sent_bytes: to other stages, per micro-batch, forward and backward.
        planned_input_s: of I, where backwards are split.
        planned_weight_s: of W, likewise.
        measured_input_s: of I; median over micro-batches.
        measured_weight_s: of W; median over micro-batches.
        forward_flops: floating-point operations of F in matrix products, convolutions and
            attention, per micro-batch.
        backward_flops: of the backward, I and W together.
        activation_bytes: kept for the backward, per micro-batch.
    """

    stage: int
    ranks: tuple[int, ...]
    blocks: str
    num_parameters: int
    parameter_bytes: int
    num_waiting: int | None = None
    planned_forward_s: float | None = None
    planned_backward_s: float | None = None
    measured_forward_s: float | None = None
    measured_backward_s: float | None = None
    sent_bytes: int | None = None
    planned_input_s: float | None = None
    planned_weight_s: float | None = None
    measured_input_s: float | None = None
    measured_weight_s: float | None = None
    forward_flops: int | None = None
    backward_flops: int | None = None
    activation_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class LossCurve:
    """Loss over steps.

    Attributes:
        training: (step, loss of that step's batch).
        heldout: (step, loss on data that is not trained on).
        unit: of the loss, such as ``nats per byte``.
        reference: a loss to compare with, drawn as a line, such as the entropy of byte counts.
        reference_name: what that is.
    """

    training: tuple[tuple[int, float], ...]
    heldout: tuple[tuple[int, float], ...] = ()
    unit: str = ""
    reference: float | None = None
    reference_name: str = "reference"


@dataclass(frozen=True, slots=True)
class Throughput:
    """Work done per second, by step.

    Attributes:
        points: (step, ``unit`` per second).
        unit: what is counted, such as ``tokens`` or ``rows``.
    """

    points: tuple[tuple[int, float], ...]
    unit: str


@dataclass(frozen=True, slots=True)
class Report:
    """A run, or a plan of one. What is empty or None leaves its section out.

    Attributes:
        title: the headline.
        schedule: name of the schedule.
        num_microbatches: per step.
        planned: timeline of one step as simulated.
        measured: timeline of one step as it ran.
        optimizer: updates, drawn with the measured step.
        planned_activations: micro-batches held, by rank, on the planned timeline's clock.
        measured_activations: the same on the measured timeline's clock.
        planned_memory: bytes of activations held, by rank, on the planned timeline's clock.
        measured_memory: the same on the measured timeline's clock.
        program: that ran, or would run.
        idle: where the idle time went, by rank: of the measured step if there is one.
        critical_path: of the same step.
        stages: rows of the stage table.
        loss: loss curve.
        throughput: work per second over steps.
        step_s: median wall-clock seconds of a step, optimizer included.
        speed_ratio: throughput over that of one process on one core, in the same run.
        gradient_equality: one line, such as ``gradients equal one process: … 1e-15``.
        gradients_equal: whether that line is good news.
        configuration: (what, value) of what was asked for, such as ``("schedule", "1f1b")``.
        environment: (what, value), such as ``("torch", "2.13.0")``.
    """

    title: str
    schedule: str
    num_microbatches: int
    planned: Timeline | None = None
    measured: Timeline | None = None
    optimizer: tuple[OptimizerSpan, ...] = ()
    planned_activations: tuple[StepFunction, ...] = ()
    measured_activations: tuple[StepFunction, ...] = ()
    planned_memory: tuple[StepFunction, ...] = ()
    measured_memory: tuple[StepFunction, ...] = ()
    program: Program | None = None
    idle: tuple[IdleParts, ...] = ()
    critical_path: tuple[PathStep, ...] = ()
    stages: tuple[StageRow, ...] = ()
    loss: LossCurve | None = None
    throughput: Throughput | None = None
    step_s: float | None = None
    speed_ratio: float | None = None
    gradient_equality: str | None = None
    gradients_equal: bool = True
    configuration: tuple[tuple[str, str], ...] = ()
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def timeline(self) -> Timeline | None:
        """The step that figures are of: measured, or else planned."""
        return self.measured or self.planned

    @property
    def num_ranks(self) -> int:
        """Ranks of the pipeline."""
        return max((t.num_ranks for t in (self.planned, self.measured) if t), default=0)
