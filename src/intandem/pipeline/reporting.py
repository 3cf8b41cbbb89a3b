"""What a pipeline's report shows: the plan and the last step, side by side."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from intandem.ir import ActionKind
from intandem.pipeline.surroundings import environment_of
from intandem.simulator import activations, critical_path, idle_parts, simulate
from intandem.views.chrome_trace import chrome_trace
from intandem.views.html import report_html
from intandem.views.report import LossCurve, Report, StageRow, Throughput
from intandem.views.report_json import format_report
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
        losses: of each step, by its number: steps before a checkpoint was loaded count.
        step_s: seconds of each step, without the optimizer, by its number.
    """

    losses: deque[tuple[int, float]] = field(default_factory=lambda: _kept())
    step_s: deque[tuple[int, float]] = field(default_factory=lambda: _kept())

    def add(self, step: int, loss: float, seconds: float) -> None:
        """Take in one step. What had its number, before an older checkpoint was loaded, goes."""
        for curve in (self.losses, self.step_s):
            while curve and curve[-1][0] >= step:
                curve.pop()
        self.losses.append((step, loss))
        self.step_s.append((step, seconds))


def _kept() -> deque[tuple[int, float]]:
    return deque(maxlen=_NUM_STEPS_KEPT)


def write_report(report: Report, path: Path) -> None:
    """Write ``report`` as an HTML page, or where ``path`` ends in ``.json`` as a value."""
    is_value = path.suffix.lower() == ".json"
    path.write_text(format_report(report) if is_value else report_html(report), encoding="utf-8")


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
    measured, kept = step.timeline, assembly.plan.kept_bytes
    seconds = _seconds_by_stage(measured)
    planned = simulate(program, assembly.plan.cost_model())
    losses = [(step, loss) for step, loss in history.losses if math.isfinite(loss)]
    return Report(
        title=title,
        schedule=program.name,
        num_microbatches=program.num_microbatches,
        planned=planned,
        measured=measured,
        optimizer=step.updates,
        planned_activations=activations(planned),
        measured_activations=activations(measured),
        planned_memory=activations(planned, kept) if kept else (),
        measured_memory=activations(measured, kept) if kept else (),
        program=program,
        idle=idle_parts(measured, program, {u.rank: (u.start_s, u.end_s) for u in step.updates}),
        critical_path=critical_path(measured, program),
        stages=tuple(
            _row(request.model, assembly, stage, seconds)
            for stage in range(program.placement.num_stages)
        ),
        loss=LossCurve(tuple(losses)),
        throughput=Throughput(tuple((i, 1 / s) for i, s in history.step_s), "steps"),
        step_s=median(s for _, s in history.step_s),
        configuration=_configuration(request, program),
        environment=environment_of(assembly.home, step.clock_error_s),
    )


def _configuration(request: Request, program: Program) -> tuple[tuple[str, str], ...]:
    return (
        ("model", type(request.model).__name__),
        ("schedule", program.name),
        ("ranks", str(program.num_ranks)),
        ("stages", str(program.placement.num_stages)),
        ("replicas", str(request.replicas)),
        ("micro-batches", str(program.num_microbatches)),
        ("recompute", str(request.recompute)),
        ("seed", str(request.options.seed)),
    )


def _row(model: nn.Module, assembly: Assembly, stage: int, seconds: _Seconds) -> StageRow:
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
        measured_forward_s=_median_s(seconds, stage, (ActionKind.F,)),
        measured_backward_s=_median_s(seconds, stage, _BACKWARD),
        sent_bytes=sum(graph.values[v].num_bytes for values in hands for v in values),
        planned_input_s=costs.backward_input_s[stage],
        planned_weight_s=costs.backward_weight_s[stage],
        measured_input_s=_median_s(seconds, stage, (ActionKind.I,)),
        measured_weight_s=_median_s(seconds, stage, (ActionKind.W,)),
        forward_flops=assembly.plan.forward_flops(stage),
        backward_flops=assembly.plan.backward_flops(stage),
        activation_bytes=assembly.plan.kept_bytes[stage] if assembly.plan.kept_bytes else None,
    )


def _blocks(assembly: Assembly, stage: int) -> str:
    starts = (*assembly.plan.starts, len(assembly.segments))
    names = [s.name for s in assembly.segments[starts[stage] : starts[stage + 1]]]
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"


_Seconds = dict[tuple[int, ActionKind], dict[int, float]]
"""By stage and kind, and then by micro-batch."""
_BACKWARD = (ActionKind.B, ActionKind.I, ActionKind.W)


def _seconds_by_stage(measured: Timeline) -> _Seconds:
    found: _Seconds = {}
    for span in measured.spans:
        action = span.action
        by_microbatch = found.setdefault((action.stage, action.kind), {})
        before_s = by_microbatch.get(action.microbatch, 0.0)
        by_microbatch[action.microbatch] = before_s + span.end_s - span.start_s
    return found


def _median_s(seconds: _Seconds, stage: int, kinds: tuple[ActionKind, ...]) -> float | None:
    """Median over micro-batches of the seconds that ``kinds`` of a stage took together."""
    total: dict[int, float] = {}
    for kind in kinds:
        for microbatch, part_s in seconds.get((stage, kind), {}).items():
            total[microbatch] = total.get(microbatch, 0.0) + part_s
    return median(total.values()) if total else None
