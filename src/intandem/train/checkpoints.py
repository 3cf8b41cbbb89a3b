"""What the trainer needs of checkpoints, and how the library's own serve it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Protocol

from intandem.checkpoint import CheckpointFolder
from intandem.pipeline.exchange import exchange_of

if TYPE_CHECKING:
    from pathlib import Path

    from intandem.train.setup import Parts

FOLDER = "checkpoints"


class Checkpoints(Protocol):
    """Saves everything that a run goes on from, by step. Every call is collective."""

    def save(self, step: int, extra: dict[str, Any]) -> None:
        """Save model, optimizer, scaler, draws and ``extra`` (JSON); forget the oldest."""
        ...

    def load_latest(self) -> dict[str, Any] | None:
        """Load the newest one that is whole, and return its ``extra``; None if there is none."""
        ...


class _Folder:
    """Checkpoints of the library's own.

    Args:
        root: of all of them.
        parts: of the run.
    """

    def __init__(self, root: Path, parts: Parts) -> None:
        self._root, self._parts = root, parts
        self._folder = CheckpointFolder(root, keep=parts.config.checkpoint.keep)
        self._exchange = exchange_of(parts.pipe)

    def save(self, step: int, extra: dict[str, Any]) -> None:
        """See ``Checkpoints``."""
        self._parts.pipe.save(self._folder.path(step), optimizer=self._parts.optimizer, extra=extra)
        self._folder.prune()

    def load_latest(self) -> dict[str, Any] | None:
        """See ``Checkpoints``. The first rank chooses; what it refuses is put aside."""
        own = self._choose() if self._exchange.rank == 0 else ""
        name = self._exchange.first("intandem train --resume", own.encode()).decode()
        if not name:
            return None
        return self._parts.pipe.load(self._root / name, optimizer=self._parts.optimizer)

    def _choose(self) -> str:
        """Name of the newest checkpoint that is whole, or nothing where there is none at all.

        Newer ones are in the way of those that are to come, and get another name.

        Raises:
            CheckpointError: if there are some, and none of them is whole.
        """
        names = sorted(path.name for path in self._root.glob("step-*") if path.name[5:].isdigit())
        if not names:
            return ""
        newest = self._folder.latest().name
        for name in names[names.index(newest) + 1 :]:
            away = (self._root / f"{name}.refused{n or ''}" for n in itertools.count())
            (self._root / name).rename(next(path for path in away if not path.exists()))
        return newest


def open_checkpoints(root: Path, parts: Parts) -> Checkpoints:
    """Return the checkpoints in ``root``, of a run that is made of ``parts``."""
    return _Folder(root, parts)
