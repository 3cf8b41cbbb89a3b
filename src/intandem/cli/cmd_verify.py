"""``intandem verify``: checks a schedule or program file and prints every finding."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path  # noqa: TC003  (read at run time, to know what an argument is)
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from intandem.cli.arguments import carry_out, check_counts
from intandem.cli.order_files import read_order, size_of
from intandem.ir import Schedule
from intandem.rules import check

if TYPE_CHECKING:
    from intandem.errors import Diagnostic
    from intandem.ir import Program

ABOUT = """Check a schedule or program and print every finding.

Exit status: 0 if there is none, 1 if there are findings, 2 if the file cannot be read.

examples:
  intandem verify mine.schedule
  intandem verify mine.csv --memory-cap 4 --format json
"""


@dataclass(frozen=True, slots=True)
class Arguments:
    """What ``verify`` takes."""

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """A schedule file, a program file, or a compute-order .csv of torch.distributed.pipelining."""
    memory_cap: Annotated[int | None, tyro.conf.arg(metavar="A", aliases=["--max-activations"])] = (
        None
    )
    """Most stage activations that any rank may hold at once."""
    format: Literal["text", "json"] = "text"
    """One finding per line, or one JSON object."""


def main(argv: list[str]) -> int:
    """Run the command; returns the exit status."""
    return carry_out(_verify, Arguments, argv, command="verify", about=ABOUT)


def _verify(arguments: Arguments) -> int:
    check_counts(memory_cap=arguments.memory_cap)
    order = read_order(arguments.file)
    found = check(order, max_activations=arguments.memory_cap)
    if arguments.format == "json":
        print(json.dumps(_as_object(order, found)))
    else:
        print("\n".join([*map(str, found), _summary(order, found)]))
    return 1 if found else 0


def _kind(order: Schedule | Program) -> str:
    return "schedule" if isinstance(order, Schedule) else "program"


def _as_object(order: Schedule | Program, found: tuple[Diagnostic, ...]) -> dict[str, object]:
    return {
        "kind": _kind(order),
        "schedule": order.name,
        "ok": not found,
        "diagnostics": [asdict(diagnostic) for diagnostic in found],
    }


def _summary(order: Schedule | Program, found: tuple[Diagnostic, ...]) -> str:
    verdict = f"{len(found)} problem(s)" if found else "no problems"
    return f"{', '.join([f'{_kind(order)} {order.name}', *size_of(order)])}: {verdict}"
