"""How far a search is."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from intandem.cli.figures import share_above
from intandem.cli.slow_work import shown_if_slow
from intandem.views import units

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import Progress as Bar

    from intandem.planner import Progress


@contextmanager
def searching() -> Iterator[Callable[[Progress], None]]:
    """Give what a search is to call as it goes on; shows a line that goes away at the end."""
    line = _Line()
    with shown_if_slow(line):
        yield line.update


class _Line:
    """A bar with the best so far, from when it is started."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bar: Bar | None = None
        self._last: Progress | None = None
        self._stopped = False

    def start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (BarColumn(bar_width=24), TimeElapsedColumn(), TextColumn("{task.description}"))
        with self._lock:
            if self._stopped:
                return
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.add_task("searching", total=1.0)
            self._bar.start()
            self._show()

    def update(self, progress: Progress) -> None:
        with self._lock:
            self._last = progress
            self._show()

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            if self._bar is not None:
                self._bar.stop()

    def _show(self) -> None:
        if self._bar is None or self._last is None:
            return
        self._bar.update(
            self._bar.task_ids[0],
            completed=self._last.share,
            description=_description(self._last),
        )


def _description(progress: Progress) -> str:
    best, bound_s = units.duration(progress.value_s), progress.lower_bound_s
    if bound_s <= 0:
        return f"{best}  {progress.method}"
    above = share_above(progress.value_s / bound_s - 1)
    return f"{best}, within {above} of the lower bound  {progress.method}"
