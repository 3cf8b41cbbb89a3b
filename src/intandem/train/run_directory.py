"""The directory of a run: everything that is needed to repeat it, and what came of it.

config.toml         the configuration with every default; `intandem train` takes it again
config.1.toml ...   earlier ones, if the run was gone on with in another way
environment.json    each start: command, versions, machine
code/               files of the functions that the configuration names
tokenizer.json      learned tokens
metrics.jsonl       a line for each step and validation
checkpoints/        what the run goes on from
report.html         the last step, planned and measured
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import shutil
import sys
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intandem.errors import RunError
from intandem.train.config_file import read_config, table_of, write_config
from intandem.train.loggers import METRICS, forget_after
from intandem.user_code import source_files

if TYPE_CHECKING:
    from intandem.train.config import Config

CONFIG = "config.toml"
_KEPT = (
    "seed",
    "precision",
    "data.seq",
    "data.rows",
    "data.tokenizer",
    "data.vocab",
    "data.validation",
)
"""Keys that stay the same when a run is gone on with, and all of ``model`` but its loss."""


class RunDirectory:
    """The directory of a run.

    Args:
        path: of the directory; it is made if it is not there.

    Raises:
        RunError: if it cannot be made.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path).expanduser()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            msg = f"directory = {path!r} cannot be made: {error.strerror}"
            raise RunError(msg) from error

    @property
    def tokenizer(self) -> Path:
        """Where learned tokens are kept."""
        return self.path / "tokenizer.json"

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """Where numbers are."""
        return self.path / METRICS

    @property
    def report(self) -> Path:
        """Where the report goes."""
        return self.path / "report.html"

    @property
    def has_run(self) -> bool:
        """Whether there is something to go on with."""
        is_logged = self.metrics.is_file() and self.metrics.stat().st_size > 0
        return is_logged or any(self.checkpoints.glob("step-*"))

    def forget_tokens(self) -> None:
        """Remove learned tokens, which are of another text. Every rank may call it."""
        self.tokenizer.unlink(missing_ok=True)

    def refuse_other_run(self) -> None:
        """Refuse a directory that has a run in it already.

        Raises:
            RunError: saying what can be done.
        """
        if self.has_run:
            msg = (
                f"{self.path} has a run in it; go on with it by --resume, or take another "
                "--directory"
            )
            raise RunError(msg)

    def refuse_other_config(self, config: Config) -> None:
        """Refuse to go on with a run on other data or with another model.

        Raises:
            RunError: naming the first key that differs.
        """
        path = self.path / CONFIG
        if not path.is_file():
            return
        before, now = (_flat(table_of(c)) for c in (read_config(path), config))
        model = sorted(k for k in {*before, *now} if k.startswith("model.") and k != "model.loss")
        for key in (*_KEPT, *model):
            if before.get(key) != now.get(key):
                msg = (
                    f"{key} is {now.get(key)!r}, and was {before.get(key)!r} in the run that "
                    f"{self.path} has; leave it, or take another --directory"
                )
                raise RunError(msg)

    def begin(self, config: Config, *, step: int) -> None:
        """Write down what is needed to repeat the run from here; forget metrics of later steps."""
        forget_after(self.path, step)
        self._write_config(write_config(config))
        starts = self._starts()
        starts.append({"step": step, **environment()})
        _replace(self.path / "environment.json", json.dumps(starts, indent=1))
        self._copy_code(config)

    def _write_config(self, text: str) -> None:
        path = self.path / CONFIG
        if path.is_file() and path.read_text(encoding="utf-8") != text:
            number = len(list(self.path.glob("config.*.toml"))) + 1
            path.replace(self.path / f"config.{number}.toml")
        _replace(path, text)

    def _starts(self) -> list[dict[str, Any]]:
        path = self.path / "environment.json"
        found: list[dict[str, Any]] = json.loads(path.read_text("utf-8")) if path.is_file() else []
        return found

    def _copy_code(self, config: Config) -> None:
        sources: dict[Path, None] = {}
        names = (config.data.source, config.model.name, config.model.loss or "")
        for name in (*names, config.optimizer.name, *config.logging.loggers):
            if ":" in name and not name.startswith(("text:", "images:")):
                sources.update(dict.fromkeys(source_files(name)))
        taken: set[str] = set()
        for source in sources:
            (self.path / "code").mkdir(exist_ok=True)
            name = _free_name(source, taken)
            taken.add(name)
            shutil.copy(source, self.path / "code" / name)


def environment() -> dict[str, Any]:
    """Return what a run may depend on besides its configuration."""
    import torch

    packages = {name: d.version for d in distributions() if (name := d.metadata["Name"])}
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "folder": str(Path.cwd()),
        "num_processes": int(os.environ.get("WORLD_SIZE", "1")),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "machine": platform.platform(),
        "packages": dict(sorted(packages.items())),
    }


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _free_name(source: Path, taken: set[str]) -> str:
    """Return the name of a file, or ``name.2.py`` where another one has that."""
    names = (f"{source.stem}.{n}{source.suffix}" for n in itertools.count(2))
    return next(name for name in itertools.chain([source.name], names) if name not in taken)


def _replace(path: Path, text: str) -> None:
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
