"""What a save returns."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


_NICENESS = 10
"""Enough to have a tenth of the time that a thread of training has, where both want a core."""


class SavedCheckpoint:
    """A checkpoint that has been written, or is being written.

    Attributes:
        path: its folder.
        was_waited_for: whether this process has been told what came of it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._future: Future[Path] = Future()
        self.was_waited_for = False

    def __repr__(self) -> str:
        return f"SavedCheckpoint({str(self.path)!r}, done={self.done})"

    @property
    def done(self) -> bool:
        """Whether it is on the disk, or cannot be written."""
        return self._future.done()

    def wait(self) -> Path:
        """Return the folder once it is on the disk.

        Raises:
            CheckpointError: if it cannot be written.
            PeerFailureError: if the run has ended.
        """
        self.was_waited_for = True
        return self._future.result()

    def failure(self) -> BaseException | None:
        """Wait, and return what it failed with, if it has."""
        return self._future.exception()

    def run_in_background(self, work: Callable[[], Path]) -> None:
        """Write it on a thread that leaves the cores to those who train.

        No daemon: a script that ends is not to lose its last checkpoint.
        """

        def run() -> None:
            if sys.platform == "linux":  # elsewhere a thread has no priority of its own
                os.nice(_NICENESS)
            self.run(work)

        threading.Thread(target=run, name="intandem save").start()

    def run(self, work: Callable[[], Path]) -> None:
        """Write it."""
        try:
            self._future.set_result(work())
        except BaseException as error:  # whatever it is: for those who wait
            self._future.set_exception(error)
