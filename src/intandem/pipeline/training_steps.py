"""The training steps of a pipeline: those that are over, and those that ranks may still be at."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, NoReturn

from intandem.errors import RunError
from intandem.pipeline.reporting import History
from intandem.runtime.loss_report import PromisedLoss, StepLoss

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from torch import nn

    from intandem.pipeline.assembly import Assembly
    from intandem.pipeline.passing import Begun, Passes, Trained
    from intandem.runtime.loss_report import LossReport

MOST_AHEAD = 1
"""Steps that may be under way when the next one begins."""


class _Underway:
    """A step that was begun, and what came of it."""

    def __init__(self, begun: Begun) -> None:
        self.begun = begun
        self.report: LossReport | None = None
        self.error: BaseException | None = None


class TrainingSteps:
    """Begins steps and completes them in the same order.

    Args:
        passes: runs them.
        assembly: the pipeline's parts.

    Attributes:
        run_ahead: whether steps may be left under way: ranks step their own parameters.
        history: losses and seconds of the steps that are over.
    """

    def __init__(self, passes: Passes, assembly: Assembly) -> None:
        self.run_ahead = False
        self.history = History()
        self._passes = passes
        self._ranks = assembly.ranks
        self._underway: deque[_Underway] = deque()
        self._last: Trained | None = None
        self._since_s = 0.0
        assembly.recordings.before_recording = self.settle

    def run(
        self, batch: Any, parameters: Callable[[], list[nn.Parameter]], scale: Callable[[], float]
    ) -> StepLoss:
        """Run a step, once those under way are over; see ``Passes.train``.

        Raises:
            NonFiniteLossError: if a micro-batch's loss is NaN or infinite.
        """
        self.complete()
        began_s = time.perf_counter()
        trained = self._passes.train(batch, parameters, scale)
        self._note(trained, time.perf_counter() - began_s)
        return StepLoss(trained.report)

    def begin(self, batch: Any) -> PromisedLoss:
        """Begin a step, once there is room for it, and return its loss without waiting for it."""
        while len(self._underway) > MOST_AHEAD:
            self._complete_first()
        begun = self._passes.begin(batch)
        if not self._underway:
            self._since_s = time.perf_counter()
        step = _Underway(begun)
        self._underway.append(step)
        return PromisedLoss(lambda: self._report_of(step))

    def complete(self) -> None:
        """Wait for the steps that are under way.

        Raises:
            NonFiniteLossError: if a loss is NaN or infinite.
            PipelineError: whatever ended one of them.
        """
        while self._underway:
            self._complete_first()

    def settle(self) -> None:
        """Do what ``complete`` does, and wait for optimizers, too."""
        if self.run_ahead:
            self.complete()
            self._ranks.join()

    def last(self) -> Trained:
        """Return the last step that was begun, once it is over.

        Raises:
            RunError: before the first one.
        """
        self.settle()
        return self._last or refuse_none_yet()

    def _report_of(self, step: _Underway) -> LossReport:
        while step in self._underway:
            self._complete_first()
        if step.report is None:
            raise step.error or AssertionError
        return step.report

    def _complete_first(self) -> None:
        step = self._underway.popleft()
        try:
            trained = self._passes.complete(step.begun)
            now_s = time.perf_counter()
            self._since_s, seconds = now_s, now_s - self._since_s
            self._note(trained, seconds)
        except BaseException as error:
            step.error = error
            raise
        step.report = trained.report

    def _note(self, trained: Trained, seconds: float) -> None:
        self._last = trained
        self.history.add(trained.step, trained.report.value, seconds)
        trained.report.check_finite(stage=self._passes.last_stage, step=trained.step)


def refuse_none_yet() -> NoReturn:
    """Raise, where no step has run."""
    msg = "no step has run yet, so there is nothing to show"
    raise RunError(msg)
