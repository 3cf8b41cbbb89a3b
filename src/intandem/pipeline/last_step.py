"""What the last step did, for whoever asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from intandem.pipeline.gathering import Gathered, gather_step
from intandem.pipeline.reporting import build_report, write_report, write_trace

if TYPE_CHECKING:
    from pathlib import Path

    from intandem.ir import Program
    from intandem.pipeline.assembly import Assembly
    from intandem.pipeline.exchange import Exchange
    from intandem.pipeline.optimizer import PipelineOptimizer
    from intandem.pipeline.request import Request
    from intandem.pipeline.training_steps import TrainingSteps
    from intandem.views.report import Report


@dataclass(slots=True)
class LastStep:
    """The last step of a pipeline. All but ``program`` is collective.

    Attributes:
        optimizer: of the pipeline's own, whose updates are shown.
    """

    request: Request
    assembly: Assembly
    exchange: Exchange
    steps: TrainingSteps
    optimizer: PipelineOptimizer | None = None

    def program(self) -> Program:
        """Return what ran; raises ``RunError`` before the first step."""
        return self.steps.last().program

    def gathered(self) -> Gathered:
        """Return it as all processes saw it."""
        last = self.steps.last()
        updates = {} if self.optimizer is None else self.optimizer.updates
        return gather_step(last, updates, self.exchange, self.assembly.placement.num_ranks)

    def report(self, title: str) -> Report:
        """Return the report of it."""
        program, history = self.program(), self.steps.history
        return build_report(self.request, self.assembly, program, self.gathered(), history, title)

    def write_report(self, path: Path, title: str) -> Path:
        """Write its report, in the process of rank 0; return ``path`` in all."""
        report = self.report(title)
        if self.assembly.home.is_first:
            write_report(report, path)
        return path

    def write_trace(self, path: Path, title: str) -> Path:
        """Write its trace, in the process of rank 0; return ``path`` in all."""
        program, step = self.program(), self.gathered()
        if self.assembly.home.is_first:
            write_trace(program, step, path, title)
        return path
