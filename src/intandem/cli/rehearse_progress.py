"""How far a rehearsal is."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from intandem.cli.slow_work import ProgressLine, shown_if_slow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from intandem.rehearsal import Progress


@contextmanager
def rehearsing(names: Sequence[str], num_steps: int) -> Iterator[Callable[[Progress], None]]:
    """Give what a rehearsal is to call as it goes on; shows a line that goes away at the end.

    Args:
        names: of the schedules, in the order in which they are rehearsed.
        num_steps: of each, warm-up included.
    """
    line = ProgressLine("starting the ranks")

    def tell(progress: Progress) -> None:
        among = f"{progress.part + 1} of {len(names)}: " if len(names) > 1 else ""
        line.update(f"{among}{names[progress.part]}, step {progress.step + 1} of {num_steps}")

    with shown_if_slow(line):
        yield tell
