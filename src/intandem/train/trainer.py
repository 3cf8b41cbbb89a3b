"""Trains as a configuration says."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from intandem.errors import RunError
from intandem.pipeline.exchange import exchange_of, tell_failure
from intandem.train.checkpoints import FOLDER, open_checkpoints
from intandem.train.config_file import checked
from intandem.train.data.source import find_data
from intandem.train.loggers import Loggers, find_loggers
from intandem.train.progress import Silence, State
from intandem.train.run_directory import RunDirectory
from intandem.train.setup import set_up
from intandem.train.steps import train_step, validate
from intandem.train.stopping import listening

if TYPE_CHECKING:
    from collections.abc import Mapping

    from intandem.train.checkpoints import Checkpoints
    from intandem.train.config import Config
    from intandem.train.progress import Progress
    from intandem.train.setup import Parts
    from intandem.train.steps import Trained
    from intandem.train.stopping import Stop

_RECENT = 20
"""Steps that the throughput shown is of."""


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
        loss: of the last step; None if none was run.
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
    config = checked(config)
    shown = progress if progress is not None and is_first() else Silence()
    with listening() as stop:
        directory = RunDirectory(config.directory)
        if resume:
            directory.refuse_other_config(config)
        else:
            directory.refuse_other_run()
        data = find_data(config, directory.tokenizer)
        shown.say(f"data: {data.about}")
        parts = set_up(config, data)
        with parts.pipe:
            checkpoints = open_checkpoints(directory.path / FOLDER, parts)
            run = _Run(parts, directory, checkpoints, shown, stop)
            try:
                return run.train(resume=resume)
            except Exception as error:  # any: what one rank does alone may fail there alone
                tell_failure(parts.pipe, error)
                raise


def is_first() -> bool:
    """Tell whether this process is the one that writes and speaks."""
    return os.environ.get("RANK", "0") == "0"


class _Run:
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
        self._shown, self._stop = shown, stop
        self._loggers = Loggers([])
        self._exchange = exchange_of(parts.pipe)
        self._step = 0
        self._validated: int | None = None
        self._saved: int | None = None
        self._began_s, self._before_s = time.perf_counter(), 0.0
        self._recent: deque[Trained] = deque(maxlen=_RECENT)
        self._work_s, self._num_units = 0.0, 0
        self._validation: Mapping[str, float] = {}

    def train(self, *, resume: bool) -> Outcome:
        """Train to the last step, or until told to stop."""
        resumed_from = self._resume() if resume else None
        if is_first():
            self._directory.begin(self._config, step=self._step)
            folder, logging = self._directory.path, self._config.logging
            self._loggers = find_loggers(logging, folder, step=self._step)
        self._introduce(resumed_from)
        self._began_s = time.perf_counter()
        signum = 0
        try:
            while not (self._is_over or signum):
                self._train_step()
                signum = 0 if self._is_over else self._told_to_stop()
            self._finish(signum)
        finally:
            self._loggers.close()
        return self._outcome(resumed_from, signum)

    def _train_step(self) -> None:
        trained = train_step(self._parts, self._step)
        self._step += 1
        self._recent.append(trained)
        self._work_s += trained.seconds
        self._num_units += trained.num_units
        if _is_due(self._step, self._config.logging.every) or self._is_over:
            self._log(trained)
        self._shown(self._state(trained))
        if _is_due(self._step, self._config.validation.every):
            self._validate()
        if _is_due(self._step, self._config.checkpoint.every):
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
        if not signum and self._recent:
            title = f"intandem train: {self._config.model.name}"
            for path in (self._directory.report, self._directory.report.with_suffix(".json")):
                self._parts.pipe.report(path, title)

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
                "seconds": self._seconds,
            },
        )
        self._saved = self._step
        self._shown.say(f"checkpoint after step {self._step}")

    def _resume(self) -> int | None:
        extra = self._checkpoints.load_latest()
        if extra is None:
            return None
        if extra["fingerprint"] != self._parts.data.fingerprint:
            msg = (
                f"the data ({self._parts.data.about}) are not those that the run in "
                f"{self._directory.path} was trained on; put them back, or take another --directory"
            )
            raise RunError(msg)
        self._parts.batches.load_state_dict(extra["data"])
        self._step = self._saved = self._validated = extra["step"]
        self._before_s = extra["seconds"]
        return self._step

    # What is said.

    @property
    def _seconds(self) -> float:
        return self._before_s + time.perf_counter() - self._began_s

    def _introduce(self, resumed_from: int | None) -> None:
        parts = self._parts
        self._shown.say(
            f"model: {parts.config.model.name}, {parts.num_parameters / 1e6:.2f} M parameters, on "
            f"{parts.pipe.num_ranks} rank{'s' * (parts.pipe.num_ranks != 1)}"
        )
        if resumed_from is not None:
            self._shown.say(f"going on after step {resumed_from}")

    def _log(self, trained: Trained) -> None:
        numbers: dict[str, Any] = {"loss": trained.loss, **trained.metrics, "lr": trained.rate}
        if trained.grad_norm is not None:
            numbers["grad_norm"] = trained.grad_norm
        if self._parts.scaler is not None:
            numbers["loss_scale"] = self._parts.scaler.get_scale()
        numbers[f"{self._parts.data.unit}_per_s"] = trained.num_units / trained.seconds
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

    def _state(self, trained: Trained) -> State:
        recent_s = sum(each.seconds for each in self._recent)
        num_left = self._config.steps - self._step
        return State(
            step=self._step,
            num_steps=self._config.steps,
            loss=trained.loss,
            units_per_s=sum(each.num_units for each in self._recent) / recent_s,
            unit=self._parts.data.unit,
            left_s=num_left * recent_s / len(self._recent) if len(self._recent) > 2 else None,
        )

    def _told_to_stop(self) -> int:
        """The signal that a process was told to stop by, or 0: the same on all. Collective."""
        own = str(self._stop.signum).encode()
        return max(int(fact) for fact in self._exchange.gather("intandem train", own))

    def _outcome(self, resumed_from: int | None, signum: int) -> Outcome:
        return Outcome(
            directory=str(self._directory.path),
            step=self._step,
            num_steps=self._config.steps,
            resumed_from=resumed_from,
            stopped_by=signal.Signals(signum).name if signum else None,
            saved_step=self._saved,
            loss=self._recent[-1].loss if self._recent else None,
            validation=self._validation,
            seconds=self._seconds,
            units_per_s=self._num_units / self._work_s if self._work_s else 0.0,
            unit=self._parts.data.unit,
        )


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
