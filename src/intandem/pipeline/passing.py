"""One call of the pipeline: the batch split and recorded, the ranks run, the loss read."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from intandem.errors import PipelineError
from intandem.parallel.gradients import add_scaled_
from intandem.pipeline.agreement import Agreement
from intandem.pipeline.assembly import evaluating
from intandem.pipeline.batches import join_outputs
from intandem.pipeline.programs import union_of
from intandem.recorder.recording import autocast_state
from intandem.runtime.foretold import backward_is_linear, foretold_count, refuse_correction
from intandem.runtime.stage import in_autocast
from intandem.runtime.tally import LossTally
from intandem.runtime.work import MicrobatchWork, Mode, StepWork

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor, nn

    from intandem.ir import Arrival, Program, Span
    from intandem.pipeline.assembly import Assembly
    from intandem.pipeline.batches import Batches
    from intandem.pipeline.exchange import Exchange
    from intandem.pipeline.request import Request
    from intandem.runtime.loss_report import LossReport
    from intandem.runtime.observer import Observer
    from intandem.runtime.ranks import Underway
    from intandem.runtime.work import RankResult


@dataclasses.dataclass(frozen=True, slots=True)
class Trained:
    """What a training step leaves: its loss, what was executed, and when, on own ranks."""

    step: int
    report: LossReport
    program: Program
    spans: tuple[Span, ...]
    arrivals: tuple[Arrival, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Begun:
    """A training step that ranks have been asked for."""

    work: StepWork
    underway: Underway


class Position(NamedTuple):
    """What keys random draws: the seed, and the training steps that have begun."""

    seed: int
    num_steps: int


class Passes:
    """Runs the passes of one pipeline, one after another.

    Args:
        request: what the user asked for.
        batches: splits.
        assembly: the pipeline's parts.
        exchange: with the other processes.

    Attributes:
        observer: is shown what calls return.
        position: of the next step in the run.
    """

    def __init__(
        self, request: Request, batches: Batches, assembly: Assembly, exchange: Exchange
    ) -> None:
        self._request = request
        self._batches = batches
        self._agreement = Agreement(exchange, assembly.recordings)
        self._assembly = assembly
        self._exchange = exchange
        self.observer: Observer | None = None
        self._num_passes = 0
        self._run_before: set[tuple[Mode, int]] = set()
        self.position = Position(request.options.seed, 0)
        self._unused: list[StepWork] = []

    def train(
        self, batch: Any, parameters: Callable[[], list[nn.Parameter]], scale: Callable[[], float]
    ) -> Trained:
        """Run forward and backward of every micro-batch, adding to ``.grad``.

        Args:
            batch: whole.
            parameters: returns those of this process.
            scale: returns what the loss is multiplied by before it is differentiated.

        Returns:
            What happened; the loss may be NaN or infinite.
        """
        work = self._training_work(batch, scale)
        held = parameters() if self._assembly.loss_is_sum and work.is_linear else None
        earlier = None if held is None else _set_gradients_aside(held)
        results = self._execute(work)
        report = self._report_of(work)
        if not work.is_linear:
            refuse_correction(report.correction)
        if held is not None and earlier is not None:
            add_scaled_(held, earlier, report.correction)
        return _trained(work, report, results)

    @property
    def can_overlap(self) -> bool:
        """Whether a step may begin while ranks of this process are still at the one before.

        Not where something is done with gradients of several ranks when a step is over: parameters
        that they share, counts of a ``LossSum``. Nor while an observer looks on.
        """
        assembly = self._assembly
        if self.observer is not None:
            return False
        is_shared = any(len(holders) > 1 for holders in assembly.holders_of.values())
        return not (is_shared or assembly.loss_is_sum or assembly.placement.replicas)

    def begin(self, batch: Any) -> Begun:
        """Have the ranks train on ``batch``, once they have done what was asked of them before.

        Only where steps can overlap.
        """
        work = self._training_work(batch, lambda: 1.0)
        self._unused.append(work)
        with self._in_recorded_precision(work):
            return Begun(work, self._assembly.ranks.begin(work))

    def is_usable(self) -> Callable[[], bool]:
        """Return what tells, once a rank has its gradients of the last step, if they are usable.

        All losses are known then, as backwards begin with them. What has been added up since this
        was last asked counts; steps that were waited for have been looked at.
        """
        works, self._unused = self._unused, []
        return lambda: all(work.tally.report().is_finite for work in works)

    def complete(self, begun: Begun) -> Trained:
        """Wait for a step; see ``train``."""
        results = begun.underway.wait()
        report = self._report_of(begun.work)
        if report.is_finite:
            self._unused = [work for work in self._unused if work is not begun.work]
        return _trained(begun.work, report, results)

    def _training_work(self, batch: Any, scale: Callable[[], float]) -> StepWork:
        with torch.enable_grad():
            work = dataclasses.replace(self._work(batch, Mode.TRAIN), scale=scale())
        self.position = Position(work.seed, work.step + 1)
        return work

    def evaluate(self, batch: Any) -> LossReport:
        """Run forwards in evaluation mode for their loss.

        Raises:
            NonFiniteLossError: if a micro-batch's loss is NaN or infinite.
        """
        with evaluating(self._request.model):
            work = self._work(batch, Mode.EVALUATE)
            self._execute(work)
            report = self._report_of(work)
        report.check_finite(stage=self.last_stage, step=work.step)
        return report

    @property
    def last_stage(self) -> int:
        """The stage that computes the loss."""
        return self._assembly.placement.num_stages - 1

    def predict(self, batch: Any) -> Any:
        """Run forwards in evaluation mode; return outputs where the last stage is, else None."""
        with evaluating(self._request.model):
            work = self._work(batch, Mode.PREDICT)
            results = self._execute(work)
            self._ends_of(work)
        outputs = next((r.outputs for r in results if r.outputs), None)
        return None if outputs is None else join_outputs([outputs[i] for i in sorted(outputs)])

    def _execute(self, work: StepWork) -> list[RankResult]:
        with self._in_recorded_precision(work):
            return self._assembly.ranks.execute(work)

    def _in_recorded_precision(self, work: StepWork) -> AbstractContextManager[None]:
        """Calls enter the mixed precision they were recorded under, and no other."""
        return in_autocast([dataclasses.replace(state, enabled=False) for state in work.autocast])

    def _work(self, batch: Any, mode: Mode) -> StepWork:
        """Make a pass ready. Where that fails on one process, no other is left waiting."""
        try:
            return self._prepared(batch, mode)
        except PipelineError as error:
            self._assembly.home.fail(error)
            raise

    def _prepared(self, batch: Any, mode: Mode) -> StepWork:
        state = self._assembly.recordings.state()
        if self._assembly.home.membership is not None:
            self._agreement.check(batch, state, f"{mode.value}()")
        parts = self._batches.split(batch, self._assembly.home.device)
        self._assembly.weights.refresh()
        seed, step = self.position
        found = self._assembly.recordings.find_all(parts.parts, (seed, step), state)
        links = union_of(recorded.links for recorded in found)
        program = self._assembly.programs.find(len(found), links, mode)
        microbatches = tuple(
            MicrobatchWork(part, recorded.tensors_of(part), recorded)
            for part, recorded in zip(parts.parts, found, strict=True)
        )
        joining = self._assembly.joining
        autocast, loss = autocast_state(), self._request.loss
        is_sum = self._assembly.loss_is_sum if mode is Mode.TRAIN else None
        is_linear = not is_sum or backward_is_linear(self._request.model, microbatches)
        asked = not is_linear and joining is None
        foretold = foretold_count(microbatches, loss, autocast) if asked else None
        if foretold is None and program.placement.replicas:
            foretold = float(sum(parts.rows))
        new = {(mode, id(recorded)) for recorded in found} - self._run_before
        self._run_before |= new
        self._num_passes += 1
        return StepWork(
            sequence=self._num_passes,
            step=step,
            seed=seed,
            mode=mode,
            program=program,
            microbatches=microbatches,
            tally=LossTally(
                [1.0] if joining else self._batches.weights(parts),
                is_sum=is_sum,
                foretold=foretold,
            ),
            loss=loss,
            autocast=autocast,
            is_linear=is_linear,
            observer=self.observer,
            joining=joining,
            is_told=self._assembly.home.membership is not None,
            has_new_calls=bool(new),
        )

    def _report_of(self, work: StepWork) -> LossReport:
        for told in self._ends_of(work):
            work.tally.learn(told)
        return work.tally.report()

    def _ends_of(self, work: StepWork) -> list[bytes]:
        """Return what last stages of other processes say once their forwards are over, if any.

        Waiting for them keeps a process from running ahead without limit. It is no barrier: they
        say it before their backwards, which this process's own gradients have waited for.
        """
        ranks = self._assembly.ranks
        return [
            ranks.transport.read(work.end_of_forwards(replica))
            for replica, rank in work.last_ranks().items()
            if rank not in ranks.own
        ]


def _trained(work: StepWork, report: LossReport, results: Sequence[RankResult]) -> Trained:
    spans = tuple(span for result in results for span in result.spans)
    arrivals = tuple(arrival for result in results for arrival in result.arrivals)
    return Trained(work.step, report, work.program, spans, arrivals)


def _set_gradients_aside(parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
    """Keep a step's gradients apart that are still to be scaled by a ``LossSum``'s count."""
    earlier = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    return earlier
