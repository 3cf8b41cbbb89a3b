"""Being told to stop: SIGTERM and Ctrl-C end a run after the step that it is at."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from intandem.pipeline.exchange import Exchange

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


class SharedStop:
    """What any process was told, known to all of them after the same step.

    Each leaves what it has heard after every step, and reads what all had heard a step before: so
    none waits for the slowest.

    Args:
        stop: of this process.
        exchange: with the others.
    """

    def __init__(self, stop: Stop, exchange: Exchange) -> None:
        self._stop, self._exchange = stop, exchange
        self._num_calls = 0

    def heard(self) -> int:
        """The signal that a process was told to stop by, or 0: the same on all. Collective."""
        ranks = range(self._exchange.num_processes)
        if len(ranks) == 1:
            return self._stop.signum
        before, self._num_calls = self._num_calls, self._num_calls + 1
        own = str(self._stop.signum).encode()
        self._exchange.leave(f"stop/{self._num_calls}/{self._exchange.rank}", own)
        if not before:
            return 0
        return max(int(self._exchange.read(f"stop/{before}/{rank}")) for rank in ranks)


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
