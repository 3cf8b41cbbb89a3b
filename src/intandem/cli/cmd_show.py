"""``intandem show``: draws a schedule and says how good it is."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from intandem.cli.arguments import parse_arguments
from intandem.cli.order_files import find_order, size_of
from intandem.costs import CostModel, costs_from_json, parse_costs
from intandem.errors import PipelineError
from intandem.ir import Program, Schedule, Timeline, format_compute_csv
from intandem.lowering import lower
from intandem.simulator import lower_bound_s, peak_activations, simulate
from intandem.views import units

ABOUT = """Draw a schedule: grid, makespan, bubble ratio, activations held.

What is drawn is the program that the ranks would execute, transfers included, on the clock of a
simulator.

examples:
  intandem show 1f1b --ranks 4 --microbatches 8
  intandem show gpipe --ranks 4 --microbatches 8 --costs F=1,B=2 --transfer 0.1 --svg gpipe.svg
  intandem show mine.csv --costs costs.json --format json
"""


@dataclass(frozen=True, slots=True)
class Arguments:
    """What ``show`` takes."""

    schedule: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SCHEDULE")]
    """Name (naive, gpipe, 1f1b), or a schedule file, program file or compute-order .csv."""
    ranks: Annotated[int | None, tyro.conf.arg(metavar="P")] = None
    """Pipeline ranks; needed with a name."""
    microbatches: Annotated[int | None, tyro.conf.arg(metavar="M")] = None
    """Micro-batches per step; needed with a name."""
    costs: Annotated[str, tyro.conf.arg(metavar="COSTS")] = "F=1,I=1,W=1"
    """Seconds per stage: F=1,I=1,W=1 or F=1,B=2, or a JSON file with per-stage lists."""
    transfer: Annotated[float | None, tyro.conf.arg(metavar="SECONDS")] = None
    """Seconds that a message between two ranks takes."""
    format: Literal["text", "json"] = "text"
    """Drawing and figures, or one JSON object."""
    svg: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the drawing to this SVG file as well."""
    csv: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the compute order to this CSV file, as torch.distributed.pipelining reads it."""
    columns: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Width of the drawing; the terminal's if left out."""


def main(argv: list[str]) -> int:
    """Run the command; returns the exit status."""
    arguments = parse_arguments(Arguments, argv, command="show", about=ABOUT)
    if isinstance(arguments, int):
        return arguments
    try:
        return _show(arguments)
    except (PipelineError, ValueError, OSError) as error:
        print(f"intandem show: {error}", file=sys.stderr)
        return 2


def _show(arguments: Arguments) -> int:
    order = find_order(
        arguments.schedule,
        num_ranks=arguments.ranks,
        num_microbatches=arguments.microbatches,
    )
    costs = _costs(arguments, order.placement.num_stages)
    program = lower(order) if isinstance(order, Schedule) else order
    timeline = simulate(program, costs)
    if arguments.svg:
        from intandem.views.svg import timeline_svg_file

        arguments.svg.write_text(timeline_svg_file(timeline, title=_title(program)), "utf-8")
    if arguments.csv:
        arguments.csv.write_text(format_compute_csv(program.compute_order()), "utf-8")
    if arguments.format == "json":
        print(json.dumps(_figures(program, timeline, costs)))
    else:
        print(_report(program, timeline, costs, arguments.columns))
    return 0


def _costs(arguments: Arguments, num_stages: int) -> CostModel:
    if "=" in arguments.costs:
        transfer_s = arguments.transfer or 0.0
        return parse_costs(arguments.costs, num_stages=num_stages, transfer_s=transfer_s)
    if arguments.transfer is not None:
        msg = "--transfer goes with --costs F=...; put latency_s into the JSON file instead"
        raise ValueError(msg)
    text = Path(arguments.costs).read_text(encoding="utf-8")
    return costs_from_json(text, num_stages=num_stages)


def _figures(program: Program, timeline: Timeline, costs: CostModel) -> dict[str, object]:
    rows = [program.actions(rank) for rank in range(program.num_ranks)]
    return {
        "schedule": program.name,
        "num_ranks": program.num_ranks,
        "num_microbatches": program.num_microbatches,
        "num_stages": program.placement.num_stages,
        "placement": program.placement.rank_of,
        "makespan_s": timeline.makespan_s,
        "rank_span_s": timeline.rank_span_s,
        "bubble_ratio": timeline.bubble_ratio,
        "rank_bubble_ratio": timeline.rank_bubble_ratio,
        "peak_activations": peak_activations(timeline),
        "lower_bound_s": lower_bound_s(costs, program.placement, program.num_microbatches),
        "actions": [[str(action) for action in row] for row in rows],
    }


def _title(program: Program) -> str:
    return " · ".join([program.name, *size_of(program)])


def _report(program: Program, timeline: Timeline, costs: CostModel, columns: int | None) -> str:
    from intandem.views.text import timeline_ansi, timeline_text

    draw = timeline_ansi if sys.stdout.isatty() else timeline_text
    width = columns or max(40, shutil.get_terminal_size((110, 24)).columns)
    bound_s = lower_bound_s(costs, program.placement, program.num_microbatches)
    lines = (
        ("makespan", units.duration(timeline.makespan_s)),
        ("longest rank", units.duration(timeline.rank_span_s)),
        ("lower bound", f"{units.duration(bound_s)} for any schedule on this placement"),
        ("bubble ratio", f"{units.share(timeline.bubble_ratio)} of all ranks' time is idle"),
        ("activations", f"{_per_rank(peak_activations(timeline))} held at most, per rank"),
    )
    figures = "\n".join(f"{name:<13} {value}" for name, value in lines)
    return f"{_title(program)}\n\n{draw(timeline, columns=width)}\n\n{figures}"


def _per_rank(counts: tuple[int, ...]) -> str:
    return " ".join(map(str, counts))
