"""What a pipeline's report shows: the plan and the last step, side by side."""

from __future__ import annotations

import os
import platform
from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

import torch

from intandem.ir import ActionKind
from intandem.simulator import activations, simulate
from intandem.views.chrome_trace import chrome_trace
from intandem.views.html import report_html
from intandem.views.report import LossCurve, Report, StageRow, Throughput
from intandem.views.spans_csv import spans_csv

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from intandem.ir import Program, Timeline
    from intandem.pipeline.assembly import Assembly
    from intandem.pipeline.gathering import Gathered
    from intandem.pipeline.request import Request

_NUM_STEPS_KEPT = 100_000


@dataclass(slots=True)
class History:
    """Losses and seconds of the steps so far; the oldest are forgotten after many.

    Attributes:
        losses: of each step.
        step_s: seconds of each step, without the optimizer.
    """

    losses: deque[float] = field(default_factory=lambda: deque(maxlen=_NUM_STEPS_KEPT))
    step_s: deque[float] = field(default_factory=lambda: deque(maxlen=_NUM_STEPS_KEPT))

    def add(self, loss: float, seconds: float) -> None:
        """Take in one step."""
        self.losses.append(loss)
        self.step_s.append(seconds)


def write_report(report: Report, path: Path) -> None:
    """Write ``report`` as an HTML page."""
    path.write_text(report_html(report), encoding="utf-8")


def write_trace(program: Program, step: Gathered, path: Path, title: str) -> None:
    """Write a step as a Chrome trace, or where ``path`` ends in ``.csv`` as a table."""
    if path.suffix.lower() == ".csv":
        text = spans_csv(step.timeline, optimizer=step.updates)
    else:
        text = chrome_trace(
            step.timeline,
            title=title,
            program=program,
            optimizer=step.updates,
            activations=activations(step.timeline),
        )
    path.write_text(text, encoding="utf-8")


def build_report(
    request: Request,
    assembly: Assembly,
    program: Program,
    step: Gathered,
    history: History,
    title: str,
) -> Report:
    """Return the report of the last step."""
    measured = step.timeline
    planned = simulate(program, assembly.plan.cost_model())
    return Report(
        title=title,
        schedule=program.name,
        num_microbatches=program.num_microbatches,
        planned=planned,
        measured=measured,
        optimizer=step.updates,
        planned_activations=activations(planned),
        measured_activations=activations(measured),
        stages=tuple(
            _row(request.model, assembly, stage, measured)
            for stage in range(program.placement.num_stages)
        ),
        loss=LossCurve(tuple(enumerate(history.losses))),
        throughput=Throughput(tuple((i, 1 / s) for i, s in enumerate(history.step_s)), "steps"),
        step_s=median(history.step_s),
        environment=(
            ("torch", torch.__version__),
            ("python", platform.python_version()),
            ("cores", str(os.cpu_count())),
        ),
    )


def _row(model: nn.Module, assembly: Assembly, stage: int, measured: Timeline) -> StageRow:
    part = assembly.example.cuts[stage]
    graph = assembly.example.graph
    names = {name for index in part.calls for name in graph.calls[index].parameters}
    parameters = [model.get_parameter(name) for name in names]
    costs = assembly.plan.cost_model()
    hands = [*part.sent.values(), *part.gradients_sent.values()]
    return StageRow(
        stage=stage,
        ranks=assembly.placement.holders_of(stage),
        blocks=_blocks(assembly, stage),
        num_parameters=sum(p.numel() for p in parameters),
        parameter_bytes=sum(p.numel() * p.element_size() for p in parameters),
        num_waiting=assembly.plan.num_waiting(stage),
        planned_forward_s=costs.forward_s[stage],
        planned_backward_s=costs.backward_s[stage],
        measured_forward_s=_median_s(measured, stage, {ActionKind.F}),
        measured_backward_s=_median_s(measured, stage, {ActionKind.B, ActionKind.I, ActionKind.W}),
        sent_bytes=sum(graph.values[v].num_bytes for values in hands for v in values),
    )


def _blocks(assembly: Assembly, stage: int) -> str:
    starts = (*assembly.plan.starts, len(assembly.segments))
    names = [s.name for s in assembly.segments[starts[stage] : starts[stage + 1]]]
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"


def _median_s(measured: Timeline, stage: int, kinds: set[ActionKind]) -> float | None:
    """Median over micro-batches of the seconds that ``kinds`` of a stage took together."""
    by_microbatch: dict[int, float] = {}
    for span in measured.spans:
        if span.action.stage == stage and span.action.kind in kinds:
            mb = span.action.microbatch
            by_microbatch[mb] = by_microbatch.get(mb, 0.0) + span.end_s - span.start_s
    return median(by_microbatch.values()) if by_microbatch else None
