"""``intandem show``: draws a schedule and says how good it is."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path  # noqa: TC003  (read at run time, to know what an argument is)
from typing import Annotated, Literal

import tyro

from intandem.cli.arguments import carry_out, check_counts
from intandem.cli.cost_options import read_costs
from intandem.cli.drawing import check_columns, columns_of, shown_text
from intandem.cli.figures import Objective, show_order
from intandem.cli.machine_options import read_machine
from intandem.cli.order_files import Sizes, check_cap, find_order
from intandem.cli.outputs import Outputs, check_outputs, write_outputs
from intandem.cli.schedule_help import (
    NAMES,
    MicrobatchesOption,
    RanksOption,
    StagesPerRankOption,
    schedule_list,
    takers,
)
from intandem.cli.slow_work import ProgressLine, shown_if_slow
from intandem.simulator import simulate_steps

ABOUT = f"""Draw a schedule: grid, makespan, bubble ratio, activations held.

What is drawn is the program that the ranks would execute, transfers included, on the clock of a
simulator. With "all" for the schedule, every schedule is compared in one table and one picture.

examples:
  intandem show 1f1b --ranks 4 --microbatches 8
  intandem show zb-1p --ranks 4 --microbatches 8 --costs F=1,I=1.2,W=0.8 --transfer 0.1 --svg a.svg
  intandem show interleaved --ranks 4 --microbatches 8 --stages-per-rank 2 --html a.html
  intandem show mine.csv --costs costs.json --format json
  intandem show all --ranks 4 --microbatches 8 --memory-cap 4
  intandem show zb-2p --ranks 4 --microbatches 8 --machine nodes.json --steps 10

schedules:
{schedule_list()}
"""


@dataclass(frozen=True, slots=True)
class Arguments:
    """What ``show`` takes."""

    schedule: Annotated[
        str,
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="SCHEDULE",
            help=f"Name ({NAMES}), or a schedule file, program file or compute-order .csv; "
            "or all, to compare every schedule there is.",
        ),
    ]
    ranks: RanksOption = None
    microbatches: MicrobatchesOption = None
    stages_per_rank: StagesPerRankOption = None
    memory_cap: Annotated[
        int | None,
        tyro.conf.arg(
            metavar="A",
            help="Most stage activations that a rank may hold. Schedules that are made for a cap: "
            f"{takers('max_activations')}; others are refused if they hold more. With all, it "
            "counts P-ths of the model, so that schedules with V stages per rank may hold A times "
            "V.",
        ),
    ] = None
    costs: Annotated[
        str,
        tyro.conf.arg(
            metavar="COSTS",
            help="Seconds per stage: F=1,I=1,W=1 or F=1,B=2, or a JSON file with per-stage lists, "
            "bytes and link costs. With all, seconds are of a P-th of the model, and a schedule "
            "with V stages per rank has stages of a V-th of that; lists are cut or joined alike.",
        ),
    ] = "F=1,I=1,W=1"
    transfer: Annotated[float | None, tyro.conf.arg(metavar="SECONDS")] = None
    """Seconds that a message between two ranks takes."""
    machine: Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="FILE",
            help="JSON file with the links between ranks: latency_s, bandwidth_bytes_per_s, links "
            "of single pairs of ranks, shared_wires, transfers_overlap (whether ranks compute "
            "while messages move). They count in place of those of --costs. The lower bound takes "
            "the fastest link for all; memory_bytes are not compared.",
        ),
    ] = None
    steps: Annotated[
        int | None,
        tyro.conf.arg(
            metavar="N",
            help="Also run N training steps, optimizer and reduction included, with and without a "
            "barrier between them.",
        ),
    ] = None
    objective: Objective = "global"
    """What is compared with the lower bound: the makespan, or the longest rank's own time."""
    format: Literal["text", "json"] = "text"
    """Drawing and figures, or JSON: one object, or a list of objects with all."""
    columns: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Width of the drawing; the terminal's if left out."""
    files: tyro.conf.OmitArgPrefixes[Outputs] = field(default_factory=Outputs)


def main(argv: list[str]) -> int:
    """Run the command; returns the exit status."""
    return carry_out(_show, Arguments, argv, command="show", about=ABOUT)


def _show(arguments: Arguments) -> int:
    check_outputs(arguments.files)
    check_columns(arguments.columns)
    work = _of_all if arguments.schedule == "all" else _of_one
    with shown_if_slow(ProgressLine("building, simulating, drawing")):
        text = work(arguments)
    print(text)
    return 0


def _of_one(arguments: Arguments) -> str:
    """Return what is to be printed of one schedule, once its files are written."""
    costs = read_costs(arguments.costs, arguments.transfer)
    machines = read_machine(arguments.machine, arguments.transfer)
    order = find_order(arguments.schedule, _sizes(arguments), costs.per_stage)
    check_cap(order, arguments.memory_cap)
    found = costs.per_stage(order.placement.num_stages)
    machine = None if machines is None else machines.of_ranks(order.num_ranks)
    shown = show_order(order, found, arguments.objective, arguments.memory_cap, machine)
    if arguments.steps is not None:
        steps = simulate_steps(shown.program, found, machine, num_steps=arguments.steps)
        shown = replace(shown, steps=steps)
    write_outputs(shown, arguments.files)
    if arguments.format == "json":
        return json.dumps(shown.as_object())
    return shown_text(shown, columns_of(arguments.columns))


def _of_all(arguments: Arguments) -> str:
    """Return what is to be printed of all schedules, once their files are written."""
    from intandem.cli.compare import compare, comparison_text, write_comparison

    if arguments.ranks is None or arguments.microbatches is None:
        msg = "comparing all schedules needs --ranks and --microbatches"
        raise ValueError(msg)
    _refuse_what_is_of_one(arguments)
    sizes, costs = _sizes(arguments), read_costs(arguments.costs, arguments.transfer)
    machines = read_machine(arguments.machine, arguments.transfer)
    machine = None if machines is None else machines.of_ranks(arguments.ranks)
    comparison = compare(sizes, costs, arguments.objective, machine)
    write_comparison(comparison, arguments.files)
    if arguments.format == "json":
        return json.dumps(comparison.as_objects())
    return comparison_text(comparison, columns_of(arguments.columns))


def _refuse_what_is_of_one(arguments: Arguments) -> None:
    files = arguments.files
    asked = {
        "--steps": arguments.steps,
        "--csv": files.csv,
        "--spans": files.spans,
        "--trace": files.trace,
    }
    for name, value in asked.items():
        if value is not None:
            msg = f"{name} is of one schedule; name it in place of all"
            raise ValueError(msg)


def _sizes(arguments: Arguments) -> Sizes:
    check_counts(
        ranks=arguments.ranks,
        microbatches=arguments.microbatches,
        stages_per_rank=arguments.stages_per_rank,
        memory_cap=arguments.memory_cap,
        steps=arguments.steps,
    )
    return Sizes(
        arguments.ranks, arguments.microbatches, arguments.stages_per_rank, arguments.memory_cap
    )
