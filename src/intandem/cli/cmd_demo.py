"""``intandem demo``: train a small GPT in tandem, prove its gradients, draw where time went."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from intandem.cli.arguments import check_counts, check_schedule_name, parse_arguments
from intandem.cli.files import require_writable

if TYPE_CHECKING:
    from collections.abc import Sequence


ABOUT = "Train a small GPT on Python's own sources, in tandem, and draw where the time went."


@dataclass(frozen=True)
class Arguments:
    """What ``demo`` takes."""

    ranks: int = 2
    """Stages that work at the same time, each on a core of its own."""
    schedule: str = "1f1b"
    """Name of the schedule; `intandem show` draws them."""
    microbatches: int = 8
    """Parts that each batch is cut into."""
    seconds: float = 90.0
    """How long to train."""
    steps: int | None = None
    """Train this many steps instead."""
    report: Path = Path("report.html")
    """Where the report goes."""
    format: Literal["text", "json"] = "text"
    """What is printed at the end. With json, progress goes to standard error."""
    tied: bool = True
    """Let the head use the token embedding's weight: a gradient from both ends of the model."""
    seed: int = 0
    """Of weights and batches, and of which files are held out."""


def main(argv: Sequence[str]) -> int:
    """Run the demo; 1 if the gradients are not those of one process."""
    arguments = parse_arguments(Arguments, argv, command="demo", about=ABOUT)
    if isinstance(arguments, int):
        return arguments
    _refuse_early(arguments)
    from intandem.cli.demo.run import run

    outcome = run(arguments)
    print(outcome.as_json() if arguments.format == "json" else outcome.as_text())
    return 0 if outcome.gradients_equal else 1


def _refuse_early(arguments: Arguments) -> None:
    """Find out before training what would otherwise show after it.

    Raises:
        ValueError: if a count is less than 1, there is nothing to train, or the report cannot be
            written.
        ScheduleError: if there is no such schedule.
    """
    check_counts(ranks=arguments.ranks, microbatches=arguments.microbatches)
    check_schedule_name(arguments.schedule)
    budget = arguments.seconds if arguments.steps is None else arguments.steps
    if not (math.isfinite(budget) and budget > 0):
        msg = f"nothing to train in {budget:g}; --steps or --seconds must be more than 0"
        raise ValueError(msg)
    require_writable(arguments.report, option="--report")
