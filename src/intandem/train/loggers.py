"""Where numbers go: a file of JSON lines always, TensorBoard and the user's own if asked for."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Protocol

from intandem.errors import RunError
from intandem.user_code import call_as_configured

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from intandem.train.config import LoggingConfig

METRICS = "metrics.jsonl"


class Logger(Protocol):
    """Takes numbers; ``close()`` is called at the end if there is one."""

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Take the numbers of a step."""
        ...


class JsonLines:
    """Adds a line for each call, and writes it out at once.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Write one object, with ``step`` first; JSON has null for what is no finite number."""
        finite = {name: n if math.isfinite(n) else None for name, n in numbers.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """Writes what TensorBoard reads.

    Args:
        folder: of the run.
        purge_step: what an earlier part of the run wrote from here on does not count.

    Raises:
        RunError: if TensorBoard is not there.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            msg = 'logging.tensorboard needs TensorBoard: pip install "intandem[tensorboard]"'
            raise RunError(msg) from error
        self._writer: Any = SummaryWriter(  # type: ignore[no-untyped-call, unused-ignore]
            str(folder), purge_step=purge_step
        )

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Write each number under its name."""
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)

    def close(self) -> None:
        """Write what is left, and close the files."""
        self._writer.close()


class Loggers:
    """Several loggers as one.

    Args:
        loggers: each gets everything.
    """

    def __init__(self, loggers: list[Logger]) -> None:
        self._loggers = loggers

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Hand the numbers to each."""
        for logger in self._loggers:
            logger.log(numbers, step)

    def close(self) -> None:
        """Close those that can be closed."""
        for logger in self._loggers:
            if close := getattr(logger, "close", None):
                close()


def find_loggers(config: LoggingConfig, folder: Path, *, step: int) -> Loggers:
    """Return the loggers of a run that begins or goes on after ``step``.

    Raises:
        RunError: if TensorBoard is asked for and is not there.
        ValueError: if a function of the user's is not there.
        TypeError: if it returns no logger.
    """
    found = [_own(name, folder) for name in config.loggers]
    if config.tensorboard:
        found.append(TensorBoard(folder, step + 1))
    return Loggers([JsonLines(folder / METRICS), *found])


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics; one that was cut off by a crash is left out."""
    path = folder / METRICS
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = text.splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def forget_after(folder: Path, step: int) -> None:
    """Leave out the lines of steps after ``step``, which are about to be run again."""
    kept = [line for line in read_metrics(folder) if line["step"] <= step]
    rewritten = folder / f"{METRICS}.rewritten"
    rewritten.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    rewritten.replace(folder / METRICS)


def _own(name: str, folder: Path) -> Logger:
    found: Any = call_as_configured(name, "logging", folder)
    if not callable(getattr(found, "log", None)):
        msg = (
            f"{name} returned a {type(found).__name__}; expected something with log(numbers, step)"
        )
        raise TypeError(msg)
    logger: Logger = found
    return logger
