"""How far a search is."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from intandem.cli.figures import share_above
from intandem.cli.slow_work import ProgressLine, shown_if_slow
from intandem.views import units

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from intandem.planner import Progress


@contextmanager
def searching() -> Iterator[Callable[[Progress], None]]:
    """Give what a search is to call as it goes on; shows the best so far, and a bar."""
    line = ProgressLine("searching", has_share=True)
    with shown_if_slow(line):
        yield lambda progress: line.update(_description(progress), progress.share)


def _description(progress: Progress) -> str:
    best, bound_s = units.duration(progress.value_s), progress.lower_bound_s
    if bound_s <= 0:
        return f"{best}  {progress.method}"
    above = share_above(progress.value_s / bound_s - 1)
    return f"{best}, within {above} of the lower bound  {progress.method}"
