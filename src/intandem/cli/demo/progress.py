"""Progress of the demo's training: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from rich.progress import BarColumn, Progress, TextColumn

from intandem.views.units import share

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

LOG_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class State:
    """How far training is.

    Attributes:
        step: steps done.
        done: share of the training that is done, in [0, 1].
        loss: of the last step.
        tokens_per_s: of late.
        bubble_ratio: of late.
        left_s: seconds that remain, or None while unknown.
    """

    step: int
    done: float
    loss: float
    tokens_per_s: float
    bubble_ratio: float
    left_s: float | None

    def __str__(self) -> str:
        left = "" if self.left_s is None else f"  {self.left_s:.0f} s left"
        return (
            f"step {self.step}  loss {self.loss:.3f}  {self.tokens_per_s:,.0f} tokens/s  "
            f"bubble {share(self.bubble_ratio)}{left}"
        )


class Reporter(Protocol):
    """Shows how far training is; called after every step."""

    def __call__(self, state: State) -> None:
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

    def __call__(self, state: State) -> None:
        """Print ``state`` or skip it."""
        now_s = time.monotonic()
        if now_s - self._printed_at_s >= LOG_EVERY_S:
            self._printed_at_s = now_s
            self.console.print(str(state), soft_wrap=True, highlight=False)
