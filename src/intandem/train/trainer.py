"""Trains as a configuration says."""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from intandem.errors import RunError
from intandem.pipeline.batches import num_microbatches_of
from intandem.pipeline.exchange import exchange_of, tell_failure
from intandem.pipeline.reporting import write_report
from intandem.train.checkpoints import kept_microbatches, open_checkpoints
from intandem.train.config_file import checked
from intandem.train.data.source import find_data
from intandem.train.loggers import Loggers, find_loggers
from intandem.train.pace import Pace
from intandem.train.progress import Silence, State
from intandem.train.run_directory import RunDirectory
from intandem.train.setup import set_up
from intandem.train.steps import train_step, validate
from intandem.train.stopping import SharedStop, listening
from intandem.views.metrics import with_metrics

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from intandem.train.checkpoints import Checkpoints
    from intandem.train.config import Config
    from intandem.train.progress import Progress
    from intandem.train.setup import Parts
    from intandem.train.steps import Trained
    from intandem.train.stopping import Stop


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        directory: of the run.
        step: steps done, those before it was gone on with included.
        num_steps: steps asked for.
        resumed_from: the step that it went on after; None if it began.
        stopped_by: name of the signal that ended it before its time, or None.
        saved_step: step of the newest checkpoint; None if there is none.
        loss: of the last step that was logged; None if none was.
        validation: numbers of the last validation.
        seconds: of training, earlier parts of the run included.
        units_per_s: trained on, in this part.
        unit: what these are.
    """

    directory: str
    step: int
    num_steps: int
    resumed_from: int | None
    stopped_by: str | None
    saved_step: int | None
    loss: float | None
    validation: Mapping[str, float]
    seconds: float
    units_per_s: float
    unit: str

    @property
    def exit_code(self) -> int:
        """0 of a run that is complete; 128 + number of the signal that stopped it, as of a shell.

        So a scheduler can tell a run that is to be gone on with from one that is done.
        """
        return 128 + signal.Signals[self.stopped_by] if self.stopped_by else 0


def train(config: Config, *, resume: bool = False, progress: Progress | None = None) -> Outcome:
    """Train as ``config`` says, on local ranks or, under a launcher, as one of its processes.

    Args:
        config: of the run.
        resume: go on after the last complete checkpoint in ``config.directory``; begin if there
            is none.
        progress: is told how it goes, on rank 0.

    Raises:
        ValueError: if a value of the configuration is none that its key may have.
        TypeError: if a function of the user's returns something else than it should.
        PipelineError: if data, model or directory cannot be used, or the run fails.
    """
    with prepared(config, resume=resume, progress=progress) as run:
        return run.train()


@contextmanager
def prepared(
    config: Config, *, resume: bool = False, progress: Progress | None = None
) -> Iterator[Run]:
    """Give a run that is about to train: what is wrong with what was asked for is known by then.

    See ``train``. What is raised while it is open is told to the other processes.
    """
    config = checked(config)
    shown = progress if progress is not None and is_first() else Silence()
    with listening() as stop:
        directory = RunDirectory(config.directory)
        if resume:
            directory.refuse_other_config(config)
            config = _with_kept_microbatches(config, directory)
        else:
            directory.refuse_other_run()
        if not directory.has_run:
            directory.forget_tokens()
        data = find_data(config, directory.tokenizer)
        shown.say(f"data: {data.about}")
        parts = set_up(config, data)
        with parts.pipe:
            checkpoints = open_checkpoints(directory.checkpoints, parts)
            run = Run(parts, directory, checkpoints, shown, stop)
            try:
                run.begin(resume=resume)
                yield run
            except Exception as error:  # any: what one rank does alone may fail there alone
                tell_failure(parts.pipe, error)
                checkpoints.abandon()
                raise
            finally:
                run.close()


def _with_kept_microbatches(config: Config, directory: RunDirectory) -> Config:
    asked = config.pipeline
    if asked.microbatches is not None or asked.schedule.endswith(".csv"):
        return config
    kept = kept_microbatches(directory.checkpoints)
    return replace(config, pipeline=replace(asked, microbatches=kept))


def is_first() -> bool:
    """Tell whether this process is the one that writes and speaks."""
    return os.environ.get("RANK", "0") == "0"


class Run:
    """A run under way.

    Args:
        parts: that it is made of.
        directory: where it is kept.
        checkpoints: what it goes on from.
        shown: is told how it goes.
        stop: whether this process was told to stop.
    """

    def __init__(
        self,
        parts: Parts,
        directory: RunDirectory,
        checkpoints: Checkpoints,
        shown: Progress,
        stop: Stop,
    ) -> None:
        self._parts, self._config = parts, parts.config
        self._directory, self._checkpoints = directory, checkpoints
        self._shown = shown
        self._loggers = Loggers([])
        self._stop = SharedStop(stop, exchange_of(parts.pipe))
        self._step = 0
        self._resumed_from: int | None = None
        self._validated: int | None = None
        self._saved: int | None = None
        self._began_s, self._before_s = time.perf_counter(), 0.0
        self._pace = Pace()
        self._loss: float | None = None
        self._validation: Mapping[str, float] = {}

    def begin(self, *, resume: bool) -> None:
        """Go to where the run goes on, and write down what it is.

        Raises:
            PipelineError: if it cannot be gone on with.
        """
        if resume:
            self._resume()
        if is_first():
            self._directory.begin(self._config, step=self._step)
            folder, logging = self._directory.path, self._config.logging
            self._loggers = find_loggers(logging, folder, step=self._step)
        self._introduce()

    def close(self) -> None:
        """Close what numbers go to."""
        self._loggers.close()

    def train(self) -> Outcome:
        """Train to the last step, or until told to stop."""
        self._began_s = time.perf_counter()
        signum = 0
        while not (self._is_over or signum):
            self._train_step()
            signum = 0 if self._is_over else self._stop.heard()
        self._finish(signum)
        return self._outcome(signum)

    def _train_step(self) -> None:
        began_s = time.perf_counter()
        trained = train_step(self._parts, self._step)
        self._step += 1
        is_logged = _is_due(self._step, self._config.logging.every) or self._is_over
        numbers = trained.numbers() if is_logged else {}  # until then, steps may overlap
        self._pace.add(trained.num_units, time.perf_counter() - began_s)
        if is_logged:
            self._log(trained, numbers)
        self._shown(self._state())
        if _is_due(self._step, self._config.validation.every):
            self._validate()
        if _is_due(self._step, self._config.checkpoint.every) and not self._is_over:
            self._save()

    def _finish(self, signum: int) -> None:
        if signum:
            self._shown.say(
                f"told to stop by {signal.Signals(signum).name} after step {self._step}"
            )
        elif self._validated != self._step and self._config.validation.every:
            self._validate()
        if self._saved != self._step and self._config.checkpoint.every:
            self._save()
        self._checkpoints.settle()
        if not signum and self._loss is not None:
            self._report()

    def _report(self) -> None:
        """Write the report of the last step, with the curves of the whole run. Collective."""
        report = self._parts.pipe.report_value(f"intandem train: {self._config.model.name}")
        if is_first():
            metrics = self._directory.metrics
            lines = metrics.read_text(encoding="utf-8")
            report = with_metrics(report, lines, what=str(metrics))
            for path in (self._directory.report, self._directory.report.with_suffix(".json")):
                write_report(report, path)

    @property
    def _is_over(self) -> bool:
        return self._step >= self._config.steps

    # What is saved.

    def _save(self) -> None:
        self._checkpoints.save(
            self._step,
            {
                "step": self._step,
                "data": self._parts.batches.state_dict(),
                "fingerprint": self._parts.data.fingerprint,
                "microbatches": num_microbatches_of(self._parts.pipe),
                "validated": self._validated,
                "validation": dict(self._validation),
                "seconds": self._seconds,
            },
        )
        self._saved = self._step
        self._shown.say(f"saving a checkpoint after step {self._step}")

    def _resume(self) -> None:
        extra = self._checkpoints.load_latest()
        if extra is None:
            return
        if extra["fingerprint"] != self._parts.data.fingerprint:
            msg = (
                f"the data ({self._parts.data.about}) are not those that the run in "
                f"{self._directory.path} was trained on; put them back, or take another --directory"
            )
            raise RunError(msg)
        self._parts.batches.load_state_dict(extra["data"])
        self._step = self._saved = self._resumed_from = extra["step"]
        self._validated, self._validation = extra.get("validated"), extra.get("validation", {})
        self._before_s = extra["seconds"]

    # What is said.

    @property
    def _seconds(self) -> float:
        return self._before_s + time.perf_counter() - self._began_s

    def _introduce(self) -> None:
        parts = self._parts
        self._shown.say(
            f"model: {parts.config.model.name}, {parts.num_parameters / 1e6:.2f} M parameters, on "
            f"{parts.pipe.num_ranks} rank{'s' * (parts.pipe.num_ranks != 1)}"
        )
        if self._resumed_from is not None:
            self._shown.say(f"going on after step {self._resumed_from}")

    def _log(self, trained: Trained, found: Mapping[str, float]) -> None:
        self._loss = found["loss"]
        numbers: dict[str, Any] = {"loss": self._loss, **found, "lr": trained.rate}
        if trained.grad_norm is not None:
            numbers["grad_norm"] = trained.grad_norm
        if self._parts.scaler is not None:
            numbers["loss_scale"] = self._parts.scaler.get_scale()
        numbers[f"{self._parts.data.unit}_per_s"] = self._pace.unlogged_units_per_s()
        self._loggers.log({**numbers, "seconds": self._seconds}, self._step)

    def _validate(self) -> None:
        if not self._parts.validation:
            return
        self._validation = validate(self._parts)
        self._validated = self._step
        self._loggers.log({**self._validation, "seconds": self._seconds}, self._step)
        numbers = "  ".join(
            f"{name.replace('_', ' ')} {value:.4f}" for name, value in self._validation.items()
        )
        self._shown.say(f"step {self._step}: {numbers}")

    def _state(self) -> State:
        return State(
            step=self._step,
            num_steps=self._config.steps,
            loss=self._loss,
            units_per_s=self._pace.recent_units_per_s,
            unit=self._parts.data.unit,
            left_s=self._pace.left_s(self._config.steps - self._step),
        )

    def _outcome(self, signum: int) -> Outcome:
        return Outcome(
            directory=str(self._directory.path),
            step=self._step,
            num_steps=self._config.steps,
            resumed_from=self._resumed_from,
            stopped_by=signal.Signals(signum).name if signum else None,
            saved_step=self._saved,
            loss=self._loss,
            validation=self._validation,
            seconds=self._seconds,
            units_per_s=self._pace.units_per_s,
            unit=self._parts.data.unit,
        )


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
