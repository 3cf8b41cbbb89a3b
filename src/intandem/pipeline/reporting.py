"""What a pipeline's report shows: the plan and the last step, side by side."""

from __future__ import annotations

import json
import os
import platform
from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

import torch

from intandem.ir import Action, ActionKind, Span, Timeline
from intandem.simulator import activations, simulate
from intandem.views.report import LossCurve, Report, StageRow, Throughput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from intandem.ir import Program
    from intandem.pipeline.assembly import Assembly
    from intandem.pipeline.exchange import Exchange

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


def gather_timeline(spans: Sequence[Span], exchange: Exchange, num_ranks: int) -> Timeline:
    """Return the spans of all processes on one clock that begins with the first of them.

    Args:
        spans: of this process's ranks, on the clock of ``time.perf_counter``, which the processes
            of one machine share.
        exchange: with the other processes.
        num_ranks: of the pipeline.
    """
    own = [(s.rank, str(s.action), s.start_s, s.end_s) for s in spans]
    facts = exchange.gather("timeline()", json.dumps(own).encode())
    found = [
        Span(rank, Action.parse(action), start_s, end_s)
        for fact in facts
        for rank, action, start_s, end_s in json.loads(fact)
    ]
    first_s = min(span.start_s for span in found)
    moved = [Span(s.rank, s.action, s.start_s - first_s, s.end_s - first_s) for s in found]
    return Timeline(tuple(sorted(moved, key=lambda s: (s.rank, s.start_s))), num_ranks)


def build_report(
    model: nn.Module,
    assembly: Assembly,
    program: Program,
    measured: Timeline,
    history: History,
    title: str,
) -> Report:
    """Return the report of the last step."""
    planned = simulate(program, assembly.plan.cost_model())
    return Report(
        title=title,
        schedule=program.name,
        num_microbatches=program.num_microbatches,
        planned=planned,
        measured=measured,
        planned_activations=activations(planned),
        measured_activations=activations(measured),
        stages=tuple(
            _row(model, assembly, stage, measured) for stage in range(program.placement.num_stages)
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
