"""What is shown of work that takes a while: on standard error, and only on a terminal."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import Progress

QUIET_S = 2.0
"""How long nothing is shown."""


class Line(Protocol):
    """A line that says how far the work is, and goes away at the end."""

    def start(self) -> None:
        """Show it, unless it was stopped before; called from a thread of its own."""
        ...

    def stop(self) -> None:
        """Take it away, if it is shown."""
        ...


class TextLine:
    """What is being done, and for how long.

    Args:
        text: what is done at first.
    """

    def __init__(self, text: str) -> None:
        self._lock = threading.Lock()
        self._shown: Progress | None = None
        self._text = text
        self._stopped = False

    def start(self) -> None:
        """Show it, unless it was stopped before."""
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        with self._lock:
            if self._stopped:
                return
            self._shown = Progress(*columns, console=Console(stderr=True), transient=True)
            self._shown.add_task(self._text, total=None)
            self._shown.start()

    def update(self, text: str) -> None:
        """Say what is done from now on."""
        with self._lock:
            self._text = text
            if self._shown is not None:
                self._shown.update(self._shown.task_ids[0], description=text)

    def stop(self) -> None:
        """Take it away, if it is shown."""
        with self._lock:
            self._stopped = True
            if self._shown is not None:
                self._shown.stop()


@contextmanager
def shown_if_slow(line: Line) -> Iterator[None]:
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
