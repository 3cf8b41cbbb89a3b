"""What a save returns."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class SavedCheckpoint:
    """A checkpoint that has been written, or is being written.

    Attributes:
        path: its folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._future: Future[Path] = Future()
        self._was_waited_for = False

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
        self._was_waited_for = True
        return self._future.result()

    def settle(self) -> None:
        """Wait, and raise what nobody has been told."""
        if self._was_waited_for:
            self._future.exception()
        else:
            self.wait()

    def run(self, work: Callable[[], Path]) -> None:
        """Write it."""
        try:
            self._future.set_result(work())
        except BaseException as error:  # whatever it is: for those who wait
            self._future.set_exception(error)
