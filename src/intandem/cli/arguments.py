"""How every command reads its arguments: a dataclass in, a value or an exit status out."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import tyro

from intandem.cli.files import in_words
from intandem.cli.objections import objection
from intandem.cli.order_files import read_order
from intandem.errors import PipelineError, ScheduleError
from intandem.schedules import schedule_names
from intandem.schedules.registry import unknown_schedule

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")


def parse_arguments(
    kind: type[T], argv: Sequence[str], *, command: str, about: str, default: T | None = None
) -> T | int:
    """Read ``argv`` as the fields of ``kind``.

    Args:
        kind: a dataclass.
        argv: the words after the command.
        command: its name.
        about: what its help says first.
        default: what counts where ``argv`` says nothing, instead of the fields' own.

    Returns:
        The value, or the exit status: 0 after help was printed, 2 after an error was.
    """
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            prog = f"intandem {command}"
            if default is None:
                return tyro.cli(kind, args=list(argv), prog=prog, description=about)
            return tyro.cli(kind, args=list(argv), prog=prog, description=about, default=default)
    except SystemExit as stop:
        if not stop.code:
            return 0
    wrong = objection(kind, argv, command=command)
    print(f"intandem {command}: {wrong}" if wrong else said.getvalue(), file=sys.stderr)
    return 2


def carry_out(
    work: Callable[[T], int], kind: type[T], argv: Sequence[str], *, command: str, about: str
) -> int:
    """Read ``argv`` as the fields of ``kind``, do ``work`` with it, and return the exit status.

    What the command refuses is printed, after its name; the status is then 2.
    """
    arguments = parse_arguments(kind, argv, command=command, about=about)
    if isinstance(arguments, int):
        return arguments
    try:
        return work(arguments)
    except BrokenPipeError:
        raise
    except (PipelineError, ValueError, OSError, ModuleNotFoundError) as error:
        print(f"intandem {command}: {in_words(error)}", file=sys.stderr)
        return 2


def check_counts(**counts: int | None) -> None:
    """Refuse counts that are less than 1.

    Raises:
        ValueError: naming the option.
    """
    for name, count in counts.items():
        if count is not None and count < 1:
            msg = f"--{name.replace('_', '-')} must be 1 or more, got {count}"
            raise ValueError(msg)


def check_schedule_name(schedule: str | None) -> None:
    """Refuse what is neither a schedule's name nor a compute-order ``.csv``.

    Raises:
        ScheduleError: naming the schedules that there are, or the file that is none.
        ValueError: if the file is not text.
    """
    if schedule is None or schedule in {"auto", *schedule_names()}:
        return
    if not schedule.endswith(".csv"):
        raise ScheduleError(unknown_schedule(schedule))
    if not Path(schedule).is_file():
        msg = f"--schedule {schedule}: there is no such file"
        raise ScheduleError(msg)
    read_order(Path(schedule))
