"""``intandem check``: one process against a pipeline, on the user's own model."""

from __future__ import annotations

import json
import shlex
import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from intandem.cli.arguments import check_counts, check_schedule_name, parse_arguments

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from intandem.cli.check_output import Outcome
    from intandem.cli.jobs import Found
    from intandem.equality import Job, Setting
    from intandem.ir import Schedule

ABOUT = """Prove that a model's numbers in tandem are one process's.

Runs one step with plain PyTorch and one in a pipeline, in float64 where possible, on copies of the
model, and compares outputs, the loss, every gradient, every buffer, and the parameters after the
optimizer. With --bisect, runs a ladder of steps between the two and says which of micro-batching,
randomness, capture, cutting, the schedule or recomputation makes a difference, and in which block
it shows first.

Exit status: 0 if all are equal, 1 if not, 2 if the model cannot be run.

examples:
  intandem check train.py --ranks 4
  intandem check train.py --ranks 4 --bisect
  intandem check mypackage.models:job --ranks 2 --schedule gpipe --recompute all
  intandem check train.py --script-args="--lr 3e-4 --steps 1"
  intandem check models.py:job --dtype own --format json

A script is run up to its first step; its optimizer, schedule and micro-batches are taken from it.
job() returns intandem.Job(model, batch, loss, optimizer=lambda parameters: AdamW(parameters)).
"""

ROUNDINGS = 64
"""Of a precision below float64 that a model computes in, how many may add up."""

QUIET_S = 2.0
"""How long nothing is said about progress, in seconds."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """What ``check`` takes."""

    target: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SCRIPT|MODULE:FUNCTION")]
    """A script whose first Pipeline and first step are taken, or a function returning a Job."""
    ranks: Annotated[int, tyro.conf.arg(metavar="P")] = 2
    """Ranks of the pipeline, all replicas together, as threads of this process."""
    replicas: Annotated[int | None, tyro.conf.arg(metavar="R")] = None
    """Copies of the pipeline that share out the micro-batches; by default the script's, or 1."""
    schedule: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Schedule, or a compute-order .csv; by default the script's, or 1f1b."""
    microbatches: Annotated[int | None, tyro.conf.arg(metavar="M")] = None
    """Micro-batches; by default the script's, or 4."""
    recompute: Literal["none", "all"] | None = None
    """Run forwards again in backward; by default as the script does."""
    dtype: Literal["float64", "own"] = "float64"
    """Convert the model to float64, or keep its own dtype and allow for rounding."""
    bisect: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Find the first block whose numbers differ, and what makes them differ."""
    worst: Annotated[int, tyro.conf.arg(metavar="N")] = 5
    """How many of the worst numbers to name."""
    seed: int = 0
    """Keys random draws."""
    script_args: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ARG")] = ()
    """Arguments for the script, after = and in quotes where they begin with a dash."""
    format: Literal["text", "json"] = "text"
    """For people, or one JSON object."""


def main(argv: list[str]) -> int:
    """Run the command; returns the exit status."""
    _refuse_separator(argv)
    arguments = parse_arguments(Arguments, argv, command="check", about=ABOUT)
    if isinstance(arguments, int):
        return arguments
    from intandem.cli.check_output import as_lines, as_object
    from intandem.cli.jobs import exits_of, find_job
    from intandem.runtime.stage import in_autocast
    from intandem.user_code import errors_of

    _refuse_early(arguments)
    script_args = [word for text in arguments.script_args for word in shlex.split(text)]
    found = find_job(arguments.target, script_args)
    print(f"checking {arguments.target} on {arguments.ranks} ranks ...", file=sys.stderr)
    target = arguments.target
    with exits_of(target), errors_of(target), in_autocast(found.autocast):
        outcome = _outcome(arguments, found)
    if arguments.format == "json":
        print(json.dumps(as_object(outcome, arguments.worst)))
    else:
        print("\n".join(as_lines(outcome, arguments.worst)))
    return 0 if outcome.equal else 1


def _refuse_separator(argv: list[str]) -> None:
    """Refuse ``--``, after which other tools take a script's arguments.

    Raises:
        ValueError: saying how they are given here.
    """
    if "--" in argv:
        words = shlex.join(argv[argv.index("--") + 1 :])
        msg = f'arguments of the script are given with --script-args="{words}", not after --'
        raise ValueError(msg)


def _refuse_early(arguments: Arguments) -> None:
    """Find out before the script runs what would otherwise show after it.

    Raises:
        ValueError: if a count is less than 1, or replicas do not share the ranks.
        ScheduleError: if there is no such schedule.
    """
    check_counts(
        ranks=arguments.ranks,
        replicas=arguments.replicas,
        microbatches=arguments.microbatches,
        worst=arguments.worst,
    )
    if arguments.replicas is not None and arguments.ranks % arguments.replicas:
        got = f"--replicas {arguments.replicas} do not share --ranks {arguments.ranks} evenly"
        fits = -(-arguments.ranks // arguments.replicas) * arguments.replicas
        msg = f"{got}; use --ranks {fits}"
        raise ValueError(msg)
    check_schedule_name(arguments.schedule)


def _outcome(arguments: Arguments, found: Found) -> Outcome:
    """Check in float64; in the model's own dtype where that is asked for or all that can be run."""
    from intandem.equality import TOLERANCE, as_float64

    setting = _setting(arguments, found)
    own = replace(setting, tolerance=_own_tolerance(found.job))
    if arguments.dtype == "own":
        return _run(arguments, found.job, own)
    try:
        job = as_float64(found.job)
        outcome = _in_float64(arguments, job, replace(setting, tolerance=TOLERANCE))
    except Exception as error:  # of the user's code, the recorder's or torch's: all the same here
        try:
            outcome = _run(arguments, found.job, own)
        except Exception:
            raise error from None
        reason = f"in float64 it raised {type(error).__name__}: {str(error).splitlines()[0]:.150}"
        return replace(outcome, why_own=reason)
    if outcome.equal and (outcome.equality.autocast or any(s.enabled for s in found.autocast)):
        return replace(outcome, in_own_dtype=_run(arguments, found.job, own))
    return outcome


def _in_float64(arguments: Arguments, job: Job, setting: Setting) -> Outcome:
    """Check; where part of the model computes in a lower precision, allow for its rounding."""
    outcome = _run(arguments, job, setting)
    equality = outcome.equality
    allowed = ROUNDINGS * equality.lowest
    if outcome.equal or not setting.tolerance < equality.max_error <= allowed:
        return outcome
    reason = f"{equality.lowered}, so its rounding is allowed for: {allowed:.0e}"
    outcome = _run(arguments, job, replace(setting, tolerance=allowed))
    return replace(outcome, why_tolerance=reason)


def _run(arguments: Arguments, job: Job, setting: Setting) -> Outcome:
    from intandem.cli.check_output import Outcome
    from intandem.equality import bisect_job, check_job, whole_batch_difference

    began_s = time.perf_counter()

    def notify(text: str) -> None:
        if time.perf_counter() - began_s > QUIET_S:
            print(f"  {text} ...", file=sys.stderr)

    if arguments.bisect:
        bisection = bisect_job(job, setting, notify)
        return Outcome(arguments.target, job, setting, bisection.equality, bisection)
    equality = check_job(job, setting)
    information = None
    if equality.equal:
        notify("equal; the whole batch in one plain call")
        information = whole_batch_difference(job, setting)
    return Outcome(arguments.target, job, setting, equality, information=information)


def _setting(arguments: Arguments, found: Found) -> Setting:
    from intandem.equality import Setting, Splitting
    from intandem.pipeline.request import read_schedule

    given: dict[str, Any] = {k: v for k, v in found.arguments.items() if v is not None}
    for name in ("schedule", "microbatches", "recompute", "replicas"):
        if getattr(arguments, name) is not None:
            given[name] = getattr(arguments, name)
    for name in ("ranks", "options"):  # ours
        given.pop(name, None)
    if "schedule" in given:
        given["schedule"] = read_schedule(given["schedule"])
        if not isinstance(given["schedule"], str):
            count = given["schedule"].num_microbatches * given.get("replicas", 1)
            given.setdefault("microbatches", count)
    fitting = _numbers_of_stages(given.get("schedule", "auto"), arguments.ranks, given)
    for name in ("split_points", "stages"):
        names = given.get(name)
        if names is not None and not isinstance(names, str) and len(names) + 1 not in fitting:
            del given[name]
    splitting = Splitting(
        given.pop("microbatches", 4),
        given.pop("split", None),
        given.pop("count", None),
        given.pop("inputs", None),
        tuple(given.pop("blocks", ())),
    )
    return Setting(
        arguments.ranks,
        splitting,
        given.pop("schedule", "auto"),
        given.pop("recompute", "auto"),
        arguments.seed,
        more=given,
    )


def _numbers_of_stages(
    schedule: str | Schedule, num_ranks: int, given: Mapping[str, Any]
) -> Container[int]:
    """Return how many stages a schedule may have; the script's cuts may be for other ranks."""
    from intandem.schedules import build_schedule
    from intandem.schedules.registry import leaves_open

    depth = num_ranks // given.get("replicas", 1)
    if not isinstance(schedule, str):
        return {schedule.num_stages}
    if schedule == "auto":
        return {depth}
    if leaves_open(schedule, "stages_per_rank"):
        return range(depth, 1 + depth * 1000, depth)
    count = given.get("microbatches", 4)
    return {build_schedule(schedule, num_ranks=depth, num_microbatches=count).num_stages}


def _own_tolerance(job: Job) -> float:
    from intandem.equality import tolerance_of
    from intandem.recorder.stage_chain import as_module

    return tolerance_of(p.dtype for p in as_module(job.model).parameters())
