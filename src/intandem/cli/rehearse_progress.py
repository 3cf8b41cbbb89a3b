"""How far a rehearsal is."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from intandem.cli.slow_work import shown_if_slow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.status import Status

    from intandem.rehearsal import Progress


@contextmanager
def rehearsing(names: Sequence[str], num_steps: int) -> Iterator[Callable[[Progress], None]]:
    """Give what a rehearsal is to call as it goes on; shows a line that goes away at the end.

    Args:
        names: of the schedules, in the order in which they are rehearsed.
        num_steps: of each, warm-up included.
    """
    line = _Line(names, num_steps)
    with shown_if_slow(line):
        yield line.update


class _Line:
    """Which step of which schedule, from when it is started."""

    def __init__(self, names: Sequence[str], num_steps: int) -> None:
        self._names = names
        self._num_steps = num_steps
        self._lock = threading.Lock()
        self._status: Status | None = None
        self._text = "starting the ranks"
        self._stopped = False

    def start(self) -> None:
        from rich.console import Console

        with self._lock:
            if not self._stopped:
                self._status = Console(stderr=True).status(self._text)
                self._status.start()

    def update(self, progress: Progress) -> None:
        name = self._names[progress.part]
        among = f"{progress.part + 1} of {len(self._names)}: " if len(self._names) > 1 else ""
        with self._lock:
            self._text = f"{among}{name}, step {progress.step + 1} of {self._num_steps}"
            if self._status is not None:
                self._status.update(self._text)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            if self._status is not None:
                self._status.stop()
