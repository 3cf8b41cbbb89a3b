"""What is shown of work that takes a while: on standard error, and only on a terminal."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import Progress

QUIET_S = 2.0
"""How long nothing is shown."""


class ProgressLine:
    """What is being done, for how long, and how far it is; goes away at the end.

    Args:
        text: what is done at first.
        has_share: whether ``update`` says how much of the work is done, which a bar then shows.
    """

    def __init__(self, text: str, *, has_share: bool = False) -> None:
        self._lock = threading.Lock()
        self._shown: Progress | None = None
        self._has_share = has_share
        self._text, self._share = text, 0.0
        self._stopped = False

    def start(self) -> None:
        """Show it, unless it was stopped before; called from a thread of its own."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
        )

        first = BarColumn(bar_width=24) if self._has_share else SpinnerColumn()
        columns = (first, TimeElapsedColumn(), TextColumn("{task.description}"))
        with self._lock:
            if self._stopped:
                return
            self._shown = Progress(*columns, console=Console(stderr=True), transient=True)
            self._shown.update(self._shown.add_task(self._text, total=1.0), completed=self._share)
            self._shown.start()

    def update(self, text: str, share: float = 0.0) -> None:
        """Say what is done from now on, and which share in [0, 1] of all work is done."""
        with self._lock:
            self._text, self._share = text, share
            if self._shown is not None:
                task = self._shown.task_ids[0]
                self._shown.update(task, description=text, completed=share)

    def stop(self) -> None:
        """Take it away, if it is shown."""
        with self._lock:
            self._stopped = True
            if self._shown is not None:
                self._shown.stop()


@contextmanager
def shown_if_slow(line: ProgressLine) -> Iterator[None]:
    """Start ``line`` once the work in this context has taken a while, and stop it at the end."""
    if not sys.stderr.isatty():
        yield
        return
    timer = threading.Timer(QUIET_S, line.start)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        line.stop()
