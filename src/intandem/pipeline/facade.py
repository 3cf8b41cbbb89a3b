"""The pipeline a user holds."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
import weakref
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from intandem.errors import PipelineError, RunError
from intandem.parallel.gradients import add_scaled_, clip_, gradient_norms, total_norm
from intandem.pipeline.assembly import assemble, evaluating
from intandem.pipeline.batches import Batches, agree_on_batch, join_outputs
from intandem.pipeline.exchange import Exchange
from intandem.pipeline.home import find_home, place
from intandem.pipeline.programs import union_of
from intandem.pipeline.reporting import History, build_report, gather_timeline
from intandem.pipeline.request import Options, Request, read_schedule, resolve_num_ranks
from intandem.pipeline.state import gather_state, load_state
from intandem.recorder import bind_by_signature
from intandem.recorder.recording import autocast_state
from intandem.recorder.stage_chain import as_module
from intandem.runtime.losses import LossReport, LossTally, StepLoss, refuse_missing_loss
from intandem.runtime.passes import end_of_pass
from intandem.runtime.stage import in_autocast
from intandem.runtime.transport.process_group import launched_num_ranks
from intandem.runtime.work import MicrobatchWork, Mode, StepWork
from intandem.views.html import report_html

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from intandem.ir import Program, Schedule, Span, Timeline
    from intandem.recorder import Arguments
    from intandem.runtime.observer import Observer
    from intandem.runtime.work import RankResult
    from intandem.views.report import Report

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class _LastStep:
    """What is kept of a step: what was executed, and when, on this process's ranks."""

    program: Program
    spans: tuple[Span, ...]


class Pipeline:
    """Trains any module in stages on several ranks, with one process's gradients.

    Args:
        model: any ``nn.Module``, unchanged. Under a launcher, every process builds it alike, and
            parameters of other ranks' stages are freed. Or a list of modules, one per stage, each
            given what the one before returned.
        example: a batch like those to come: a tensor, or a dictionary, tuple or list of them.
        loss: ``loss_fn(output, batch)`` returning a scalar (a mean over rows) or a ``LossSum``;
            left out when the model's output carries ``loss``.
        ranks: local ranks, threads of this process that share one device; left out under a
            launcher. By default 1.
        schedule: name, ``Schedule``, path of a compute-order ``.csv``, or ``"auto"``.
        microbatches: parts that a batch is split into; by default 4 per rank.
        split_points: the module that each stage after the first begins with, by name; by default
            stages are measured and balanced.
        stages: ``"auto"``, or the same as ``split_points``.
        blocks: modules to keep whole besides those found: names (of containers: their children)
            and classes.
        recompute: ``"all"``: run forwards again in backward, to keep only stages' inputs;
            ``"none"`` or ``"auto"``: keep what autograd keeps.
        split: for leaves of the batch, the dim that holds the rows, or None to give them whole to
            each micro-batch: ``{"mask": None}``.
        count: what a micro-batch counts for when its loss is a mean over something other than
            rows, such as ``lambda batch: (batch["labels"] != -100).sum()``.
        inputs: how a batch becomes arguments of ``forward``, where the rules of
            ``bind_by_signature`` do not do.
        options: device, seed, time-outs.

    Raises:
        CaptureError: if the model cannot be recorded, or not cut into as many stages.
        LossError: if there is no usable loss.
        BatchError: if the example cannot be split.
        ScheduleError: if there is no such schedule.
    """

    def __init__(  # noqa: PLR0913  (the public surface)
        self,
        model: nn.Module | Sequence[nn.Module],
        *,
        example: Any,
        loss: Callable[[Any, Any], Any] | None = None,
        ranks: int | None = None,
        schedule: str | Schedule = "auto",
        microbatches: int | None = None,
        split_points: Sequence[str] | None = None,
        stages: str | Sequence[str] = "auto",
        blocks: Sequence[str | type[nn.Module]] = (),
        recompute: str | bool = "auto",
        split: Mapping[str, int | None] | None = None,
        count: Callable[[Any], float] | None = None,
        inputs: Callable[[Any], Arguments] | None = None,
        options: Options | None = None,
    ) -> None:
        whole = as_module(model)
        request = Request(
            whole, loss, ranks, read_schedule(schedule), microbatches, stages, split_points, blocks,
            recompute, split, count, inputs, Options() if options is None else options,
        )  # fmt: skip
        request.check()
        launched = launched_num_ranks()
        self.num_ranks = resolve_num_ranks(ranks, launched, whole)
        home = find_home(request.options, self.num_ranks, launched=launched is not None)
        if launched is None:
            place(whole, home.device)
        self._request = request
        self._model = whole
        self._batches = Batches(request, self.num_ranks, example)
        bind = inputs or bind_by_signature(whole, loss_is_separate=loss is not None)
        device = home.device if launched is None else None
        try:
            if loss is None and inputs is None:
                refuse_missing_loss(whole, self._batches.split(example, device).parts[0])
            self._batches.find_counting(example, device, bind)
            parts = self._batches.split(example, device).parts
            self._assembly = assemble(request, parts, home, bind)
        except Exception as error:
            home.fail(error)
            raise
        self._exchange = Exchange(self._assembly.ranks.transport if launched is not None else None)
        self._num_steps = 0
        self._num_passes = 0
        self._last: _LastStep | None = None
        self._history = History()
        self._observer: Observer | None = None
        self._finalizer = weakref.finalize(self, self._assembly.ranks.close)

    # Passes.

    def step(self, batch: Any) -> StepLoss:
        """Run forward and backward of every micro-batch, adding to ``.grad``.

        Args:
            batch: the same on every rank. A list of batches is taken for micro-batches.

        Returns:
            The loss of the whole batch, readable on every rank.

        Raises:
            BatchError: if the batch cannot be split, or ranks disagree about it.
            NonFiniteLossError: if a micro-batch's loss is NaN or infinite.
            ActionError: if an action of this process raised.
            PeerFailureError: if another rank failed.
        """
        began_s = time.perf_counter()
        with torch.enable_grad():
            work = self._work(batch, Mode.TRAIN)
        self._num_steps += 1
        earlier = self._set_gradients_aside()
        results = self._execute(work)
        report = self._report_of(work, results)
        if earlier is not None:
            add_scaled_(self.parameters(), earlier, report.correction)
        spans = tuple(span for result in results for span in result.spans)
        self._last = _LastStep(work.program, spans)
        last_stage = self._assembly.placement.num_stages - 1
        self._history.add(report.value, time.perf_counter() - began_s)
        report.check_finite(stage=last_stage, step=work.step)
        return StepLoss(report)

    def evaluate(self, batch: Any) -> float:
        """Return the mean loss of ``batch``: forward only, in evaluation mode, no gradients.

        Raises:
            NonFiniteLossError: if a micro-batch's loss is NaN or infinite.
        """
        with evaluating(self._model):
            work = self._work(batch, Mode.EVALUATE)
            report = self._report_of(work, self._execute(work))
        report.check_finite(stage=self._assembly.placement.num_stages - 1, step=work.step)
        return report.value

    def predict(self, batch: Any) -> Any:
        """Return the model's outputs in order of the rows, where the last stage is; else None.

        Forward only, in evaluation mode. Tensors of the micro-batches' outputs are joined on
        dim 0; other leaves are the first micro-batch's.
        """
        with evaluating(self._model):
            work = self._work(batch, Mode.PREDICT)
            results = self._execute(work)
            self._end_of(work)
        outputs = next((r.outputs for r in results if r.outputs), None)
        return None if outputs is None else join_outputs([outputs[i] for i in sorted(outputs)])

    # Parameters.

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield this process's parameters: all of them, or its rank's under a launcher."""
        for _, parameter in self.named_parameters():
            yield parameter

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield this process's parameters and the user's names for them."""
        own = set(self._assembly.home.own_ranks)
        for name, parameter in self._model.named_parameters():
            if own & set(self._assembly.holders_of[name]):
                yield name, parameter

    def clip_grad_norm_(self, max_norm: float) -> float:
        """Scale all gradients so that their 2-norm over all ranks is at most ``max_norm``.

        Collective. Tied weights count once.

        Returns:
            The norm before scaling.
        """
        own = set(self._assembly.home.own_ranks)
        holders = self._assembly.holders_of
        answered = {n: p for n, p in self.named_parameters() if holders[n][0] in own}
        order = [name for name, _ in self._model.named_parameters()]
        own_norms = json.dumps(gradient_norms(answered)).encode()
        norm = total_norm(
            map(json.loads, self._exchange.gather("clip_grad_norm_()", own_norms)), order
        )
        clip_(list(self.parameters()), norm, max_norm)
        return norm

    def state_dict(self) -> dict[str, Tensor]:
        """Return the whole model's state by the user's names, on every rank. Collective."""
        return gather_state(self._model, self._assembly, self._exchange)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy from ``state`` what this process holds.

        Raises:
            ValueError: if names or shapes are not the model's.
        """
        load_state(self._model, state)

    # What happened.

    def timeline(self) -> Timeline:
        """Return when every action of the last step ran, on all ranks. Collective.

        Raises:
            RunError: before the first step.
        """
        return gather_timeline(self._last_step().spans, self._exchange, self.num_ranks)

    def program(self) -> Program:
        """Return the program that the last step executed.

        Raises:
            RunError: before the first step.
        """
        return self._last_step().program

    def report_value(self, title: str = "intandem run") -> Report:
        """Return what ``report`` writes, as a value. Collective."""
        return build_report(
            self._model, self._assembly, self.program(), self.timeline(), self._history, title
        )

    def report(self, path: str | Path, title: str = "intandem run") -> Path:
        """Write an HTML report of the last step, planned and measured. Collective.

        Every rank returns ``path``; the process of rank 0 writes it.
        """
        report = self.report_value(title)
        if self._assembly.home.is_first:
            Path(path).write_text(report_html(report), encoding="utf-8")
        return Path(path)

    @property
    def num_recordings(self) -> int:
        """How often the model was recorded: once per shape, mode and path taken."""
        return self._assembly.recordings.num_recordings

    @contextmanager
    def observed(self, observer: Observer) -> Iterator[None]:
        """Show ``observer`` what every call on this process's ranks returns, while open."""
        before, self._observer = self._observer, observer
        try:
            yield
        finally:
            self._observer = before

    def close(self) -> None:
        """End this pipeline's threads and connections. The model stays as it is."""
        self._finalizer()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _last_step(self) -> _LastStep:
        if self._last is None:
            msg = "no step has run yet, so there is nothing to show"
            raise RunError(msg)
        return self._last

    # Parts of a pass.

    def _execute(self, work: StepWork) -> list[RankResult]:
        """Run a pass; calls enter the mixed precision they were recorded under, and no other."""
        off = [dataclasses.replace(state, enabled=False) for state in work.autocast]
        with in_autocast(off):
            return self._assembly.ranks.execute(work)

    def _work(self, batch: Any, mode: Mode) -> StepWork:
        """Make a pass ready. Where that fails on one process, no other is left waiting."""
        try:
            return self._prepared(batch, mode)
        except PipelineError as error:
            self._assembly.home.fail(error)
            raise

    def _prepared(self, batch: Any, mode: Mode) -> StepWork:
        if self._assembly.home.membership is not None:
            agree_on_batch(batch, self._exchange, f"{mode.value}()")
        parts = self._batches.split(batch, self._assembly.home.device)
        self._assembly.weights.refresh()
        found = [self._assembly.recordings.find(part) for part in parts.parts]
        links = union_of(recorded.links for recorded in found)
        program = self._assembly.programs.find(len(found), links, training=mode is Mode.TRAIN)
        microbatches = tuple(
            MicrobatchWork(part, recorded.tensors_of(part), recorded)
            for part, recorded in zip(parts.parts, found, strict=True)
        )
        self._num_passes += 1
        return StepWork(
            sequence=self._num_passes,
            step=self._num_steps,
            seed=self._request.options.seed,
            mode=mode,
            program=program,
            microbatches=microbatches,
            tally=LossTally(
                self._batches.weights(parts),
                is_sum=self._assembly.loss_is_sum if mode is Mode.TRAIN else None,
            ),
            loss=self._request.loss,
            autocast=autocast_state(),
            observer=self._observer,
        )

    def _set_gradients_aside(self) -> list[Tensor | None] | None:
        """Keep this step's gradients apart if they are still to be scaled by a LossSum's count."""
        if not self._assembly.loss_is_sum:
            return None
        earlier = [parameter.grad for parameter in self.parameters()]
        for parameter in self.parameters():
            parameter.grad = None
        return earlier

    def _report_of(self, work: StepWork, results: list[RankResult]) -> LossReport:
        report = next((result.report for result in results if result.report), None)
        if report is not None:
            return report
        return LossReport.decode(self._end_of(work))

    def _end_of(self, work: StepWork) -> bytes:
        """Wait until the last stage is done, so that no process runs ahead without limit."""
        return self._assembly.ranks.transport.read(end_of_pass(work.sequence))
