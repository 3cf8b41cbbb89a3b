"""What the trainer needs of checkpoints, and how the library's own serve it."""

from __future__ import annotations

import itertools
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from intandem.checkpoint import CheckpointFolder
from intandem.checkpoint.loading import Checkpoint
from intandem.pipeline.exchange import exchange_of

if TYPE_CHECKING:
    from pathlib import Path

    from intandem.pipeline.saved import SavedCheckpoint
    from intandem.train.setup import Parts


class Checkpoints(Protocol):
    """Saves everything that a run goes on from, by step. ``abandon`` alone is not collective."""

    def save(self, step: int, extra: dict[str, Any]) -> None:
        """Save model, optimizer, scaler, draws and ``extra`` (JSON), while training goes on.

        Raises:
            CheckpointError: if it cannot be begun, or the one before was not saved.
        """
        ...

    def settle(self) -> None:
        """Return once what was begun is saved, and the oldest are forgotten.

        Raises:
            CheckpointError: if it was not saved.
        """
        ...

    def abandon(self) -> None:
        """Return once nothing is being saved, however that ended."""
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
        self._saved: SavedCheckpoint | None = None

    def save(self, step: int, extra: dict[str, Any]) -> None:
        """See ``Checkpoints``."""
        self._saved = self._parts.pipe.save(
            self._folder.path(step), optimizer=self._parts.optimizer, extra=extra, wait=False
        )
        self._folder.prune()

    def settle(self) -> None:
        """See ``Checkpoints``."""
        if self._saved is not None:
            self._saved.wait()
            self._folder.prune()

    def abandon(self) -> None:
        """See ``Checkpoints``."""
        if self._saved is not None:
            with suppress(Exception):
                self._saved.wait()

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


def kept_microbatches(root: Path) -> int | None:
    """Return what the run in ``root`` splits a batch into, by its newest checkpoint; None if new.

    How many there are decides the bits, and by default depends on the number of ranks.
    """
    folder = CheckpointFolder(root)
    steps = folder.steps()
    found = Checkpoint(folder.path(steps[-1])).extra.get("microbatches") if steps else None
    return found if isinstance(found, int) else None
