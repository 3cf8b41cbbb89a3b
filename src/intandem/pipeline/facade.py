"""The pipeline a user holds."""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intandem.errors import RunError
from intandem.pipeline import pretrained
from intandem.pipeline.assembly import assemble
from intandem.pipeline.batches import Batches
from intandem.pipeline.checkpoints import Checkpoints
from intandem.pipeline.clipping import clip_gradients
from intandem.pipeline.exchange import Exchange
from intandem.pipeline.home import find_home
from intandem.pipeline.last_step import LastStep
from intandem.pipeline.materialise import give_data
from intandem.pipeline.optimizer import optimizer_of
from intandem.pipeline.options import Options
from intandem.pipeline.passing import Passes
from intandem.pipeline.request import Request, read_schedule, resolve_num_ranks
from intandem.pipeline.scaling import PipelineGradScaler, Scaling
from intandem.pipeline.state import gather_state, load_state
from intandem.pipeline.training_steps import TrainingSteps
from intandem.recorder import Arguments, bind_by_signature
from intandem.recorder.stage_chain import as_module
from intandem.runtime.loss_report import EvaluationLoss
from intandem.runtime.losses import refuse_missing_loss
from intandem.runtime.transport.process_group import launched_num_ranks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from intandem.ir import Program, Schedule, Timeline
    from intandem.pipeline.materialise import Weights
    from intandem.pipeline.optimizer import PipelineOptimizer
    from intandem.pipeline.saved import SavedCheckpoint
    from intandem.runtime.loss_report import PromisedLoss, StepLoss
    from intandem.runtime.observer import Observer
    from intandem.runtime.recording_notes import RecordingNote
    from intandem.views.report import Report


class Pipeline:
    """Trains any module in stages on several ranks, with one process's gradients.

    Args:
        model: any ``nn.Module``, unchanged. Under a launcher, every process builds it alike, and
            parameters of other ranks' stages are freed. Or a list of modules, one per stage, each
            given what the one before returned.
        example: a batch like those to come: a tensor, or a dictionary, tuple or list of them.
        loss: ``loss_fn(output, batch)`` returning a scalar (a mean over rows), a ``LossSum``, or a
            mapping of ``"loss"`` and metrics of these kinds; or a ``WholeBatchLoss`` of such a
            function; left out when the model's output carries ``loss``.
        ranks: local ranks, threads of this process that share one device; left out under a
            launcher. By default 1. All replicas together.
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
        weights: where the values of parameters and buffers come from, for a ``model`` on
            ``meta``, of which each process then holds its own part alone: a path (a Hugging Face
            folder, a ``.safetensors`` or its ``.index.json``); ``"init"``, the model's own
            initialisers, keyed by ``options.seed``; or ``function(name, module)`` that fills a
            module's own tensors in place. By default the model keeps the data it has.
        replicas: copies of the pipeline that share out the micro-batches (data parallelism); each
            is as deep as ``ranks / replicas``, and their gradients are added up, so that they are
            one process's. Every rank is given the whole batch.
        options: device, seed, time-outs.

    Raises:
        CaptureError: if the model cannot be recorded, not cut into as many stages, or has tensors
            without data that nothing fills.
        ValueError: if ``weights`` are not this model's.
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
        weights: Weights | None = None,
        replicas: int = 1,
        options: Options | None = None,
    ) -> None:
        whole = as_module(model)
        request = Request(
            whole, loss, ranks, read_schedule(schedule), microbatches, stages, split_points, blocks,
            recompute, split, count, inputs, weights, Options() if options is None else options,
            replicas,
        )  # fmt: skip
        request.check()
        launched = launched_num_ranks()
        self.num_ranks = resolve_num_ranks(ranks, launched, whole)
        request.check_for(self.num_ranks)  # before anything is shared: a script may ask again
        home = find_home(request.options, self.num_ranks, launched=launched is not None)
        self._model = whole
        self._batches = Batches(request, self.num_ranks, example)
        bind = inputs or bind_by_signature(whole, loss_is_separate=loss is not None)
        try:
            device, source = give_data(request, home)
            if loss is None and inputs is None:
                refuse_missing_loss(whole, self._batches.split(example, device).parts[0])
            self._batches.find_counting(example, device, bind)
            parts = self._batches.split(example, device).parts
            self._assembly = assemble(request, parts, home, bind, source)
        except Exception as error:
            home.fail(error)
            raise
        self._exchange = Exchange(self._assembly.ranks.transport if launched is not None else None)
        self._passes = Passes(request, self._batches, self._assembly, self._exchange)
        self._scaler: PipelineGradScaler | None = None
        self._steps = TrainingSteps(self._passes, self._assembly)
        self._last = LastStep(request, self._assembly, self._exchange, self._steps)
        self._checkpoints = Checkpoints(whole, self._assembly, self._exchange, self._passes)
        self._finalizer = weakref.finalize(self, self._assembly.ranks.close)

    # Passes.

    def step(self, batch: Any) -> StepLoss | PromisedLoss:
        """Run forward and backward of every micro-batch, adding to ``.grad``.

        Args:
            batch: the same on every rank. A list of batches is taken for micro-batches.

        Returns:
            The loss of the whole batch, readable on every rank. With an optimizer of the
            pipeline's (``optimizer``), ranks that are threads may still be at it: reading the loss
            waits, and what is raised is raised then, or by the next call.

        Raises:
            BatchError: if the batch cannot be split, or ranks disagree about it.
            NonFiniteLossError: if a micro-batch's loss is NaN or infinite.
            ActionError: if an action of this process raised.
            PeerFailureError: if another rank failed.
        """
        if self._steps.run_ahead and self._scaler is None and self._passes.can_overlap:
            return self._steps.begin(batch)
        return self._steps.run(batch, lambda: list(self.parameters()), self._scale)

    def evaluate(self, batch: Any) -> EvaluationLoss:
        """Return the mean loss of ``batch``: forward only, in evaluation mode, no gradients.

        Raises:
            NonFiniteLossError: if a micro-batch's loss is NaN or infinite.
        """
        self._steps.settle()
        return EvaluationLoss(self._passes.evaluate(batch))

    def predict(self, batch: Any) -> Any:
        """Return the model's outputs in order of the rows, where the last stage is; else None.

        Forward only, in evaluation mode. Tensors of the micro-batches' outputs are joined on
        dim 0; other leaves are the first micro-batch's.
        """
        self._steps.settle()
        return self._passes.predict(batch)

    # Parameters.

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield this process's parameters: all of them, or its rank's under a launcher."""
        for _, parameter in self.named_parameters():
            yield parameter

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield this process's parameters and the user's names for them.

        Raises:
            RunError: if parameters were added or removed after the pipeline was built.
        """
        self._steps.settle()
        self._assembly.weights.refuse_other_modules()
        own = set(self._assembly.home.own_ranks)
        for name, parameter in self._model.named_parameters():
            if own & set(self._assembly.holders_of.get(name, ())):
                yield name, parameter

    def optimizer(self, factory: Callable[[list[nn.Parameter]], Optimizer]) -> PipelineOptimizer:
        """Return an optimizer that every rank steps in its own thread of work.

        Ranks that are threads then go on to the next step as soon as their own parameters are
        updated, while others are still at the last one (not with a gradient scaler, a ``LossSum``,
        parameters that ranks share, or replicas). Whatever needs all gradients (their norm, the
        loss, ``.grad`` itself) is waited for where it is asked for through the pipeline.

        Args:
            factory: makes the optimizer of a list of parameters, called once for each rank of this
                process: ``lambda parameters: torch.optim.AdamW(parameters, lr=3e-4)``.

        Raises:
            RunError: if there is one already.
            TypeError: if the factory returns no optimizer.
        """
        named, usable = self.named_parameters(), self._passes.is_usable
        made = optimizer_of(factory, named, self._assembly, self._steps, usable)
        self._last.optimizer = made
        return made

    def clip_grad_norm_(self, max_norm: float | Tensor) -> float:
        """Scale all gradients so that their 2-norm over all ranks is at most ``max_norm``.

        Collective. Tied weights count once.

        Returns:
            The norm before scaling.

        Raises:
            RunError: if a gradient scaler has not unscaled the gradients yet.
            TypeError: if ``max_norm`` is no number.
            ValueError: if it is less than 0, which would turn gradients round.
        """
        named = dict(self.named_parameters())
        order = [name for name, _ in self._model.named_parameters()]
        return clip_gradients(max_norm, named, order, self._assembly, self._exchange, self._scaler)

    def grad_scaler(
        self,
        *,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> PipelineGradScaler:
        """Return this pipeline's gradient scaler, for float16. Collective.

        ``step`` differentiates the loss times its scale, and returns the loss itself. Then
        ``unscale_(optimizer)``, ``step(optimizer)`` and ``update()`` are as in torch, but that all
        ranks skip a step in which one of them has found infinite gradients.

        Raises:
            RunError: if there is one already, or ranks ask for different ones.
        """
        self._steps.settle()
        if self._scaler is not None:
            msg = "this pipeline has a gradient scaler already; use that one for every optimizer"
            raise RunError(msg)
        scaling = Scaling(init_scale, growth_factor, backoff_factor, growth_interval, enabled)
        self._scaler = PipelineGradScaler(self._assembly.home.device, self._exchange, scaling)
        return self._scaler

    def state_dict(self) -> dict[str, Tensor]:
        """Return the whole model's state by the user's names, on every rank. Collective."""
        self._steps.settle()
        return gather_state(self._model, self._assembly, self._exchange)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy from ``state`` what this process holds.

        Raises:
            TypeError: if ``state`` is no mapping.
            ValueError: if names or shapes are not the model's.
        """
        self._steps.settle()
        load_state(self._model, state)

    def save(
        self,
        directory: str | Path,
        *,
        optimizer: Optimizer | None = None,
        extra: Mapping[str, Any] | None = None,
        wait: bool = True,
    ) -> SavedCheckpoint:
        """Save what a run goes on with; see docs/checkpoints.md. Collective.

        Args:
            directory: a folder to make, at once and whole.
            optimizer: of ``parameters()``, or from ``optimizer(...)``.
            extra: numbers, text, lists and dictionaries of them, for ``load``. Rank 0's is kept.
            wait: whether to wait for the disk, or to return once all is copied. What fails then is
                raised by ``wait()`` of what is returned, or by the next save, load or close.

        Raises:
            CheckpointError: on every rank, if any cannot save.
        """
        self._steps.settle()
        return self._checkpoints.save(directory, optimizer, extra, self._scaler, wait=wait)

    def load(self, directory: str | Path, *, optimizer: Optimizer | None = None) -> dict[str, Any]:
        """Go on from a checkpoint of any number of ranks; return its ``extra``. Collective.

        Raises:
            CheckpointError: on every rank, if the checkpoint is not whole, or is not this model's
                and optimizer's for any. Nothing is changed then.
        """
        self._steps.settle()
        return self._checkpoints.load(directory, optimizer, self._scaler)

    def save_pretrained(
        self, directory: str | Path, max_shard_bytes: int = pretrained.MAX_SHARD_BYTES
    ) -> Path:
        """Save a folder for ``from_pretrained`` of ``transformers``; see ``save``. Collective."""
        self._steps.settle()
        return self._checkpoints.save_pretrained(directory, max_shard_bytes)

    # What happened.

    def timeline(self) -> Timeline:
        """Return when every action of the last step ran, on all ranks. Collective.

        Raises:
            RunError: before the first step.
        """
        return self._last.gathered().timeline

    def program(self) -> Program:
        """Return the program that the last step executed.

        Raises:
            RunError: before the first step.
        """
        return self._last.program()

    def report_value(self, title: str = "intandem run") -> Report:
        """Return what ``report`` writes, as a value. Collective."""
        return self._last.report(title)

    def report(self, path: str | Path, title: str = "intandem run") -> Path:
        """Write an HTML report of the last step, planned and measured. Collective.

        Every rank returns ``path``; the process of rank 0 writes it. Where ``path`` ends in
        ``.json``, it is the value that ``intandem report`` makes the page of.
        """
        return self._last.write_report(Path(path), title)

    def trace(self, path: str | Path, title: str = "intandem run") -> Path:
        """Write the last step of all ranks for ui.perfetto.dev or chrome://tracing. Collective.

        Every rank returns ``path``; the process of rank 0 writes it. Where ``path`` ends in
        ``.csv``, it is a table of when each action ran.
        """
        return self._last.write_trace(Path(path), title)

    def recordings(self) -> tuple[RecordingNote, ...]:
        """Return what was recorded on this process, why, what it cost, and how often it is used."""
        return self._assembly.recordings.notes()

    @property
    def num_recordings(self) -> int:
        """How often the model was recorded: once per shape, mode and path taken."""
        return self._assembly.recordings.num_recordings

    @contextmanager
    def observed(self, observer: Observer) -> Iterator[None]:
        """Show ``observer`` what every call on this process's ranks returns, while open."""
        self._steps.settle()
        before, self._passes.observer = self._passes.observer, observer
        try:
            yield
        finally:
            self._passes.observer = before

    def close(self) -> None:
        """End this pipeline's threads and connections. The model stays as it is."""
        try:
            self._steps.complete()
            self._checkpoints.settle()
        finally:
            self._finalizer()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close() if kind is None else self._assembly.ranks.abandon()

    def _scale(self) -> float:
        return 1.0 if self._scaler is None else self._scaler.get_scale()
