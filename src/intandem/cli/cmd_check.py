"""``intandem check``: one process against a pipeline, on the user's own model."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from intandem.cli.arguments import check_counts, check_schedule_name, parse_arguments

if TYPE_CHECKING:
    from intandem.cli.jobs import Found
    from intandem.equality import Equality

ABOUT = """Prove that a model's numbers in tandem are one process's.

Runs one step with plain PyTorch and one in a pipeline, in float64, on copies of the model, and
compares the loss, every gradient and every buffer.

Exit status: 0 if all are equal, 1 if not, 2 if the model cannot be run.

examples:
  intandem check train.py --ranks 4
  intandem check mypackage.models:job --ranks 2 --schedule gpipe
  intandem check train.py --script-args="--lr 3e-4 --steps 1"
  intandem check models.py:job --dtype own --format json      (job() returns an intandem.Job)
"""

FLOAT_TOLERANCE = 1e-4
"""Tolerance in the model's own dtype, where rounding is part of the difference."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """What ``check`` takes."""

    target: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SCRIPT|MODULE:FUNCTION")]
    """A script whose first Pipeline and first step are taken, or a function returning a Job."""
    ranks: Annotated[int, tyro.conf.arg(metavar="P")] = 2
    """Ranks of the pipeline, as threads of this process."""
    schedule: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Schedule; by default the script's, or 1f1b."""
    microbatches: Annotated[int | None, tyro.conf.arg(metavar="M")] = None
    """Micro-batches; by default the script's, or 4."""
    recompute: Literal["none", "all"] | None = None
    """Run forwards again in backward; by default as the script does."""
    dtype: Literal["float64", "own"] = "float64"
    """Convert the model to float64, or keep its own dtype and allow for rounding."""
    worst: Annotated[int, tyro.conf.arg(metavar="N")] = 5
    """How many of the worst gradients and buffers to name."""
    seed: int = 0
    """Keys random draws."""
    script_args: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ARG")] = ()
    """Arguments for the script, after = and in quotes where they begin with a dash."""
    format: Literal["text", "json"] = "text"
    """For people, or one JSON object."""


def main(argv: list[str]) -> int:
    """Run the command; returns the exit status."""
    arguments = parse_arguments(Arguments, argv, command="check", about=ABOUT)
    if isinstance(arguments, int):
        return arguments
    from intandem.cli.jobs import errors_of, find_job

    _refuse_early(arguments)
    script_args = [word for text in arguments.script_args for word in shlex.split(text)]
    found = find_job(arguments.target, script_args)
    print(f"checking {arguments.target} on {arguments.ranks} ranks ...", file=sys.stderr)
    with errors_of(arguments.target):
        equality = _check(arguments, found)
    if arguments.format == "json":
        print(json.dumps(_as_object(equality, arguments)))
    else:
        print("\n".join(_lines(equality, arguments)))
    return 0 if equality.equal else 1


def _refuse_early(arguments: Arguments) -> None:
    """Find out before the script runs what would otherwise show after it.

    Raises:
        ValueError: if a count is less than 1.
        ScheduleError: if there is no such schedule.
    """
    check_counts(ranks=arguments.ranks, microbatches=arguments.microbatches)
    check_schedule_name(arguments.schedule)


def _check(arguments: Arguments, found: Found) -> Equality:
    from intandem.equality import TOLERANCE, as_float64, check

    given: dict[str, Any] = {
        name: found.arguments[name]
        for name in (
            "schedule",
            "microbatches",
            "recompute",
            "split",
            "count",
            "inputs",
            "blocks",
        )
        if found.arguments.get(name) is not None
    }
    for name in ("schedule", "microbatches", "recompute"):
        if getattr(arguments, name) is not None:
            given[name] = getattr(arguments, name)
    in_float64 = arguments.dtype == "float64"
    job = as_float64(found.job) if in_float64 else found.job
    return check(
        job.model,
        job.batch,
        job.loss,
        ranks=arguments.ranks,
        seed=arguments.seed,
        tolerance=TOLERANCE if in_float64 else FLOAT_TOLERANCE,
        **given,
    )


def _as_object(equality: Equality, arguments: Arguments) -> dict[str, object]:
    return {
        "equal": equality.equal,
        "tolerance": equality.tolerance,
        "ranks": arguments.ranks,
        "loss": equality.loss,
        "loss_error": equality.loss_error,
        "max_gradient_error": equality.max_gradient_error,
        "max_buffer_error": equality.max_buffer_error,
        "worst": [{"name": n, "error": e} for n, e in equality.worst(arguments.worst)],
        "num_gradients": len(equality.gradient_errors),
        "num_buffers": len(equality.buffer_errors),
    }


def _lines(equality: Equality, arguments: Arguments) -> list[str]:
    rows = [
        f"loss        {equality.loss:.6g}, relative error {equality.loss_error:.1e}",
        f"gradients   {len(equality.gradient_errors)}, "
        f"max relative error {equality.max_gradient_error:.1e}",
        f"buffers     {len(equality.buffer_errors)}, "
        f"max relative error {equality.max_buffer_error:.1e}",
        "worst:",
    ]
    rows += [f"  {error:.1e}  {name}" for name, error in equality.worst(arguments.worst)]
    if equality.equal:
        return [*rows, f"EQUAL: one process's numbers, to {equality.tolerance:.0e}"]
    return [*rows, f"DIFFERENT: more than {equality.tolerance:.0e} from one process's numbers"]
