"""What is shown of work that takes a while: on standard error, and only on a terminal."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

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
