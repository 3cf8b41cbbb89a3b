"""Progress of training: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from rich.progress import BarColumn, Progress, TextColumn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

LOG_EVERY_S = 5.0


class Shown(Protocol):
    """How far training is; its text says it."""

    @property
    def done(self) -> float:
        """Share of the training that is done, in [0, 1]."""
        ...


class Reporter(Protocol):
    """Shows how far training is; called after every step."""

    def __call__(self, state: Shown) -> None:
        """Show ``state``, or decide not to."""
        ...


@contextmanager
def reporting(console: Console) -> Iterator[Reporter]:
    """Give what suits ``console``: a live line, or a plain line every few seconds."""
    if not console.is_terminal:
        yield LogLines(console)
        return
    columns = (BarColumn(bar_width=24), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=1.0)
        yield lambda state: progress.update(task, completed=state.done, description=str(state))


@dataclass
class LogLines:
    """Prints a state when the last one printed is old enough; the first one at once."""

    console: Console
    _printed_at_s: float = field(default=float("-inf"), init=False)

    def __call__(self, state: Shown) -> None:
        """Print ``state`` or skip it."""
        now_s = time.monotonic()
        if now_s - self._printed_at_s >= LOG_EVERY_S:
            self._printed_at_s = now_s
            self.console.print(str(state), soft_wrap=True, highlight=False)
