"""A folder of checkpoints by step."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from intandem.argument_types import require_int, require_type
from intandem.checkpoint.commit import PARTIAL, remove
from intandem.checkpoint.disk import RealDisk
from intandem.checkpoint.loading import Checkpoint
from intandem.checkpoint.manifest import DIGEST
from intandem.errors import CheckpointError

if TYPE_CHECKING:
    from intandem.checkpoint.disk import Disk

_log = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{8,})")
_UNFINISHED = re.compile(rf"step-(\d{{8,}}){re.escape(PARTIAL)}.+")


class CheckpointFolder:
    """Checkpoints of one run, one folder for each step that was saved.

        checkpoints = CheckpointFolder("runs/1", keep=3)
        pipe.save(checkpoints.path(step), optimizer=optimizer)
        checkpoints.prune()

        pipe.load(checkpoints.latest(), optimizer=optimizer)

    Args:
        root: the folder; it is made by the first save.
        keep: how many of the newest checkpoints ``prune`` leaves; None for all.
    """

    def __init__(self, root: str | Path, keep: int | None = None, disk: Disk | None = None) -> None:
        require_type("root", root, (str, Path), "the path of a folder")
        require_int("keep", keep)
        if keep is not None and keep < 1:
            msg = f"keep={keep}; expected 1 or more, or None for all"
            raise ValueError(msg)
        self.root = Path(root)
        self._keep = keep
        self._disk = disk or RealDisk()

    def path(self, step: int) -> Path:
        """Return where the checkpoint of a step is, or will be.

        Raises:
            ValueError: if ``step`` is less than 0.
        """
        require_int("step", step)
        if step < 0:
            msg = f"step={step}; expected 0 or more"
            raise ValueError(msg)
        return self.root / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Return the steps of whole checkpoints, ascending. Tensors are not read."""
        found = []
        for step in self._found():
            try:
                Checkpoint(self.path(step))
            except CheckpointError:
                continue
            found.append(step)
        return found

    def latest(self) -> Path:
        """Return the newest checkpoint that is whole to the last bit. Newer ones are logged.

        Raises:
            CheckpointError: if there is none; says what was found, and why it was refused.
        """
        refused: list[str] = []
        for step in reversed(self._found()):
            try:
                Checkpoint(self.path(step)).check_content()
            except CheckpointError as error:
                _log.warning("refused %s: %s", self.path(step), error)
                refused.append(f"{self.path(step).name}: {error}")
            else:
                return self.path(step)
        refused += [f"{path.name}: it was not finished" for path in self._unfinished()]
        found = "".join(f"\n  {line}" for line in refused)
        msg = f"{self.root} has no whole checkpoint{':' if found else ''}{found}"
        raise CheckpointError(msg)

    def prune(self) -> None:
        """Remove whole checkpoints older than the newest ``keep``, and unfinished older ones.

        Every rank may call it, at any time: what is being saved stays, and so does a checkpoint
        that is refused, for someone to look at.
        """
        steps = self.steps()
        finished_ns = max((_changed_ns(self.path(step) / DIGEST) for step in steps), default=0)
        for path in self._unfinished():
            step = _step_of(_UNFINISHED, path)
            # saves come one after another: one that is under way has begun after the last ended
            if step in steps or (steps and step < steps[-1] and _changed_ns(path) < finished_ns):
                self._disk.remove(path)
        if self._keep is not None:
            for step in steps[: -self._keep]:
                remove(self._disk, self.path(step))

    def _found(self) -> list[int]:
        """Return the steps of all folders that have the name of a checkpoint, ascending."""
        if not self.root.is_dir():
            return []
        paths = [path for path in self.root.iterdir() if _NAME.fullmatch(path.name)]
        steps = {_step_of(_NAME, path) for path in paths}
        return sorted(step for step in steps if self.path(step).is_dir())

    def _unfinished(self) -> list[Path]:
        if not self.root.is_dir():
            return []
        return sorted(path for path in self.root.iterdir() if _UNFINISHED.fullmatch(path.name))


def _changed_ns(path: Path) -> int:
    """Return when a file, or a folder's list of names, was changed; 0 where it is gone."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _step_of(pattern: re.Pattern[str], path: Path) -> int:
    found = pattern.fullmatch(path.name)
    return int(found[1]) if found else -1
