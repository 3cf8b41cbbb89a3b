"""Being told to stop: SIGTERM and Ctrl-C end a run after the step that it is at."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Whether this process was told to stop.

    Attributes:
        signum: by which signal; 0 if it was not.
    """

    def __init__(self) -> None:
        self.signum = 0

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Take note of a signal. A second one of the kind does what it always does."""
        del frame
        self.signum = signum
        signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else _DEFAULT)


_DEFAULT = signal.SIG_DFL


@contextmanager
def listening() -> Iterator[Stop]:
    """Take note of SIGTERM and SIGINT instead of ending, while open; in a main thread only."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {signum: signal.signal(signum, stop) for signum in _SIGNALS}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
