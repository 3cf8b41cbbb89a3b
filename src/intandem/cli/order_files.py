"""Schedules and programs as the commands take them: by name or from a file."""

from __future__ import annotations

from pathlib import Path

from intandem.errors import ScheduleError
from intandem.ir import (
    Program,
    Schedule,
    parse_compute_csv,
    parse_program,
    parse_schedule,
)
from intandem.ir.text import PROGRAM_HEADER
from intandem.schedules import build_schedule, schedule_names
from intandem.schedules.registry import unknown_schedule


def read_order(path: Path) -> Schedule | Program:
    """Read a schedule, a program or a compute-order CSV. The result is not verified.

    Raises:
        ScheduleParseError: if the file is none of them.
        OSError: if it cannot be read.
        ValueError: if it is not text.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".csv":
        return parse_compute_csv(text, name=path.stem)
    if text.startswith(PROGRAM_HEADER.rsplit(" ", 1)[0]):
        return parse_program(text)
    return parse_schedule(text)


def size_of(order: Schedule | Program) -> tuple[str, str]:
    """Write ranks and micro-batches, as ``("2 ranks", "1 micro-batch")``."""
    ranks, microbatches = order.num_ranks, order.num_microbatches
    return (
        f"{ranks} rank{'' if ranks == 1 else 's'}",
        f"{microbatches} micro-batch{'' if microbatches == 1 else 'es'}",
    )


def find_order(
    source: str, *, num_ranks: int | None, num_microbatches: int | None
) -> Schedule | Program:
    """Build the schedule called ``source``, or read the file of that name.

    Args:
        source: a known name, or a path.
        num_ranks: needed for a name; must agree with a file.
        num_microbatches: likewise.

    Raises:
        ScheduleError: if there is neither such a name nor such a file.
        ValueError: if a count is missing, or does not agree with the file.
    """
    path = Path(source)
    if source in schedule_names():
        if num_ranks is None or num_microbatches is None:
            msg = f"schedule {source!r} needs --ranks and --microbatches"
            raise ValueError(msg)
        return build_schedule(source, num_ranks=num_ranks, num_microbatches=num_microbatches)
    if not path.is_file():
        msg = f"{unknown_schedule(source)}; there is no such file either"
        raise ScheduleError(msg)
    order = read_order(path)
    for option, asked, found in (
        ("--ranks", num_ranks, order.num_ranks),
        ("--microbatches", num_microbatches, order.num_microbatches),
    ):
        if asked not in {None, found}:
            msg = f"{option} is {asked}, but {source} has {found}; leave {option} out"
            raise ValueError(msg)
    return order
