"""``intandem rehearse``: runs schedules on emulated ranks and compares with the simulator."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from intandem.cli.arguments import carry_out, check_counts
from intandem.cli.cost_options import read_costs
from intandem.cli.drawing import columns_of
from intandem.cli.order_files import Sizes, check_cap, find_order, takes_of
from intandem.cli.schedule_help import (
    NAMES,
    MicrobatchesOption,
    RanksOption,
    StagesPerRankOption,
    schedule_list,
    takers,
)
from intandem.ir import Schedule, parse_program, parse_schedule
from intandem.ir.text import PROGRAM_HEADER
from intandem.lowering import lower
from intandem.schedules import schedule_names

if TYPE_CHECKING:
    from collections.abc import Callable

    from intandem.cli.cost_options import CostOptions
    from intandem.costs import CostModel
    from intandem.ir import Program
    from intandem.rehearsal import Part

ABOUT = f"""Run schedules on emulated ranks: does it run, and does it take what the simulator says?

Everything is real but the computing: ranks are threads or processes, the runtime executes the
program that a model's ranks would, and messages of the costs' sizes are sent. Where a rank would
compute, it waits for as long as the costs say, so that many ranks fit on a few cores.

examples:
  intandem rehearse 1f1b --ranks 4 --microbatches 16
  intandem rehearse gpipe 1f1b zb-h1 zb-v --ranks 8 --microbatches 32 --costs F=0.02,B=0.04
  intandem rehearse 1f1b --ranks 4 --microbatches 16 --transport shared --boundary-bytes 1048576
  intandem rehearse 1f1b zb-2p --ranks 4 --microbatches 8 --overlap
  intandem rehearse mine.csv --costs costs.json --format json

schedules:
{schedule_list()}
"""


@dataclass(frozen=True, slots=True)
class Arguments:
    """What ``rehearse`` takes."""

    schedules: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="SCHEDULE ...",
            help=f"Names ({NAMES}), or schedule files, program files or compute-order .csv; - is a "
            "schedule or program on standard input.",
        ),
    ]
    ranks: RanksOption = None
    microbatches: MicrobatchesOption = None
    stages_per_rank: StagesPerRankOption = None
    memory_cap: Annotated[
        int | None,
        tyro.conf.arg(
            metavar="A",
            help="Most stage activations that a rank may hold: refuse a schedule that holds more; "
            f"some are made for it: {takers('max_activations')}.",
        ),
    ] = None
    costs: Annotated[
        str,
        tyro.conf.arg(
            metavar="COSTS",
            help="Seconds per stage: F=0.01,I=0.01,W=0.01 or F=0.01,B=0.02, or a JSON file with "
            "per-stage lists and bytes. What links cost is measured. With several schedules, "
            "seconds are of a P-th of the model, and a schedule with V stages per rank has stages "
            "of a V-th of that.",
        ),
    ] = "F=0.01,I=0.01,W=0.01"
    boundary_bytes: Annotated[int | None, tyro.conf.arg(metavar="BYTES")] = None
    """Size of every message between neighbouring stages, with --costs F=...; 0 if left out."""
    transport: Literal["local", "shared", "gloo"] = "local"
    """Threads of one process; processes that share memory; processes over Gloo."""
    steps: Annotated[int, tyro.conf.arg(metavar="N")] = 5
    """Steps whose median counts; two more are run before them."""
    overlap: bool = False
    """Also run as many steps without a barrier: each rank begins when it has done the last."""
    format: Literal["text", "json"] = "text"
    """A table, or JSON: one object, or a list of objects with several schedules."""
    columns: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Width of the text; the terminal's if left out."""


def main(argv: list[str]) -> int:
    """Run the command; returns the exit status."""
    return carry_out(_rehearse, Arguments, argv, command="rehearse", about=ABOUT)


def _rehearse(arguments: Arguments) -> int:
    _check(arguments)
    costs = read_costs(arguments.costs, None)
    orders = [_find(source, arguments, costs) for source in arguments.schedules]
    from intandem.cli.rehearse_figures import rehearsal_object, rehearsals_text
    from intandem.cli.rehearse_progress import rehearsing
    from intandem.rehearsal import Part, TransportKind, rehearse
    from intandem.rehearsal.request import Request

    parts = [Part(order, _costs_of(order, arguments, costs)) for order in orders]
    _check_parts(parts)
    num_steps, overlap = arguments.steps, arguments.overlap
    num_all = Request(tuple(parts), num_steps, overlap).num_all_steps
    with rehearsing([order.name for order in orders], num_all) as tell:
        kind = TransportKind(arguments.transport)
        found = rehearse(parts, kind, num_steps=num_steps, overlap=overlap, on_progress=tell)
    if arguments.format == "json":
        objects = [rehearsal_object(rehearsal) for rehearsal in found]
        print(json.dumps(objects if len(objects) > 1 else objects[0]))
    else:
        print(rehearsals_text(found, columns_of(arguments.columns)))
    return 0


def _check(arguments: Arguments) -> None:
    if not arguments.schedules:
        msg = "give at least one schedule, by name or as a file"
        raise ValueError(msg)
    if arguments.schedules.count("-") > 1:
        msg = "- stands for standard input, which can be read once"
        raise ValueError(msg)
    check_counts(
        ranks=arguments.ranks,
        microbatches=arguments.microbatches,
        stages_per_rank=arguments.stages_per_rank,
        memory_cap=arguments.memory_cap,
        steps=arguments.steps,
    )
    size = arguments.boundary_bytes
    if size is not None and size < 0:
        msg = f"--boundary-bytes must be 0 or more, got {size}"
        raise ValueError(msg)
    if size is not None and "=" not in arguments.costs:
        msg = "--boundary-bytes goes with --costs F=...; put boundary_bytes into the JSON file"
        raise ValueError(msg)


def _check_parts(parts: list[Part]) -> None:
    counts = sorted({part.program.num_ranks for part in parts})
    if len(counts) > 1:
        msg = f"schedules of {' and '.join(map(str, counts))} ranks; rehearse them one by one"
        raise ValueError(msg)


def _find(source: str, arguments: Arguments, costs: CostOptions) -> Program:
    """Build or read what ``source`` names and lower it, if it is not a program."""
    sizes = _sizes(source, arguments)
    order = _from_input(sizes) if source == "-" else None
    if order is None:
        order = find_order(source, sizes, _per_stage(arguments, costs))
    check_cap(order, arguments.memory_cap)
    return lower(order) if isinstance(order, Schedule) else order


def _sizes(source: str, arguments: Arguments) -> Sizes:
    stages_per_rank = arguments.stages_per_rank
    is_one_of_several = len(arguments.schedules) > 1 and source in schedule_names()
    if is_one_of_several and "stages_per_rank" not in takes_of(source):
        stages_per_rank = None
    cap = arguments.memory_cap
    return Sizes(arguments.ranks, arguments.microbatches, stages_per_rank, cap)


def _from_input(sizes: Sizes) -> Schedule | Program:
    text = sys.stdin.read()
    is_program = text.startswith(PROGRAM_HEADER.rsplit(" ", 1)[0])
    order = parse_program(text) if is_program else parse_schedule(text)
    for option, asked, found in (
        ("--ranks", sizes.num_ranks, order.num_ranks),
        ("--microbatches", sizes.num_microbatches, order.num_microbatches),
    ):
        if asked not in {None, found}:
            msg = f"{option} is {asked}, but standard input has {found}; leave {option} out"
            raise ValueError(msg)
    return order


def _per_stage(arguments: Arguments, costs: CostOptions) -> Callable[[int], CostModel]:
    """How costs go with a number of stages: as they are, or of one model for all schedules."""
    num_ranks = arguments.ranks
    if len(arguments.schedules) == 1 or num_ranks is None:
        return costs.per_stage
    return lambda num_stages: costs.of_model(num_stages, num_ranks)


def _costs_of(order: Program, arguments: Arguments, costs: CostOptions) -> CostModel:
    num_stages = order.placement.num_stages
    found = _per_stage(arguments, costs)(num_stages)
    if arguments.boundary_bytes is None:
        return found
    return replace(found, boundary_bytes=(arguments.boundary_bytes,) * (num_stages - 1))
