"""Schedules by name."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from intandem.errors import ScheduleError
from intandem.schedules.counts import require_counts
from intandem.schedules.gpipe import gpipe
from intandem.schedules.naive import naive
from intandem.schedules.one_f_one_b import one_f_one_b

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from intandem.ir import Schedule

_BUILDERS: Mapping[str, Callable[[int, int], Schedule]] = {
    "naive": naive,
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
}


def schedule_names() -> tuple[str, ...]:
    """Names that ``build_schedule`` knows, simplest schedule first."""
    return tuple(_BUILDERS)


def build_schedule(name: str, *, num_ranks: int, num_microbatches: int) -> Schedule:
    """Build the schedule called ``name``.

    Args:
        name: one of ``schedule_names()``.
        num_ranks: P, at least 1.
        num_microbatches: M, at least 1.

    Raises:
        ScheduleError: if there is no such schedule; lists the names there are.
        ValueError: if either count is less than 1.
    """
    if name not in _BUILDERS:
        raise ScheduleError(unknown_schedule(name))
    require_counts(num_ranks, num_microbatches)
    return _BUILDERS[name](num_ranks, num_microbatches)


def unknown_schedule(name: str) -> str:
    """Say that no schedule is called ``name``, which there are, and which is nearest."""
    nearest = get_close_matches(name.lower(), _BUILDERS, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return f"unknown schedule {name!r}; known: {', '.join(_BUILDERS)}{hint}"
