"""``intandem search``: finds a schedule for given costs and memory."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from intandem.cli.arguments import carry_out, check_counts
from intandem.cli.cost_options import read_costs
from intandem.cli.drawing import check_columns, columns_of, shown_text
from intandem.cli.figures import Objective, Shown
from intandem.cli.outputs import Outputs, check_outputs, write_outputs
from intandem.cli.search_progress import searching
from intandem.ir import Placement
from intandem.lowering import lower
from intandem.simulator import simulate

if TYPE_CHECKING:
    from intandem.costs import CostModel
    from intandem.planner import Found

ABOUT = """Find a schedule: the shortest for given costs, ranks, micro-batches and memory.

Tries placements and orders, starts from every schedule that there is, and improves the best. The
result is verified, the same for the same seed, and comes with what no schedule can be shorter than.

examples:
  intandem search --ranks 4 --microbatches 8 --memory-cap 4
  intandem search --ranks 4 --microbatches 8 --memory-cap 3 --costs F=1,I=1.2,W=0.8 --transfer 0.1
  intandem search --ranks 4 --microbatches 16 --stages-per-rank 2 --objective rank --svg found.svg
  intandem search --ranks 4 --microbatches 16 --costs costs.json --csv found.csv --format json
"""


@dataclass(frozen=True, slots=True)
class Arguments:
    """What ``search`` takes."""

    ranks: Annotated[int, tyro.conf.arg(metavar="P")]
    """Pipeline ranks."""
    microbatches: Annotated[int, tyro.conf.arg(metavar="M")]
    """Micro-batches per step."""
    memory_cap: Annotated[int | None, tyro.conf.arg(metavar="A")] = None
    """Most stage activations that a rank may hold at once; no limit if left out."""
    memory_cap_bytes: Annotated[int | None, tyro.conf.arg(metavar="BYTES")] = None
    """Most bytes of activations and pending weight gradients that a rank may hold at once, where
    the costs have activation_bytes. Messages (boundary_bytes) and weights are not counted: leave
    room for them."""
    stages_per_rank: Annotated[int | None, tyro.conf.arg(metavar="V")] = None
    """Stages that each rank holds: 1, or as the lists in the costs say."""
    placement: Literal["any", "loop", "wave"] = "any"
    """Where stages are: round the ranks (loop), down and back up (wave), or what is better."""
    costs: Annotated[
        str,
        tyro.conf.arg(
            metavar="COSTS",
            help="Seconds per stage: F=1,I=1,W=1 or F=1,B=2, or a JSON file with per-stage lists, "
            "bytes and link costs.",
        ),
    ] = "F=1,I=1,W=1"
    transfer: Annotated[float | None, tyro.conf.arg(metavar="SECONDS")] = None
    """Seconds that a message between two ranks takes."""
    objective: Objective = "global"
    """What is made short: the makespan, or the longest rank's own time."""
    backward: Literal["any", "whole", "split"] = "any"
    """Whether backwards may be split into I and W."""
    recompute: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Allow stages to run their forward again in backward, with a cap in bytes."""
    seed: int = 0
    """Of the search's random draws."""
    effort: Annotated[float, tyro.conf.arg(metavar="X")] = 1.0
    """How much work to put in, relative to the usual."""
    time_limit: Annotated[float | None, tyro.conf.arg(metavar="SECONDS")] = None
    """Stop after so long with the best so far."""
    solver: Literal["auto", "none", "cp-sat"] = "auto"
    """Whether to ask CP-SAT, which is installed with intandem[solve], for a proof."""
    format: Literal["text", "json"] = "text"
    """Drawing and figures, or one JSON object."""
    columns: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Width of the drawing; the terminal's if left out."""
    files: tyro.conf.OmitArgPrefixes[Outputs] = field(default_factory=Outputs)


def main(argv: list[str]) -> int:
    """Run the command; returns the exit status."""
    return carry_out(_search, Arguments, argv, command="search", about=ABOUT)


def _search(arguments: Arguments) -> int:
    from intandem.planner import search

    costs = _costs(arguments)
    check_outputs(arguments.files)
    check_columns(arguments.columns)
    with searching() as on_progress:
        found = search(costs, on_progress=on_progress, **_asked(arguments, costs))
    shown = _shown(found, costs)
    write_outputs(shown, arguments.files)
    if arguments.format == "json":
        print(json.dumps({**shown.as_object(), **_search_object(found, arguments)}))
    else:
        name, value, note = _verdict(found)
        text = shown_text(shown, columns_of(arguments.columns))
        print(f"{text}\n{name:<13} {value}, {note}")
    return 0


def _costs(arguments: Arguments) -> CostModel:
    check_counts(
        ranks=arguments.ranks,
        microbatches=arguments.microbatches,
        stages_per_rank=arguments.stages_per_rank,
        memory_cap=arguments.memory_cap,
        memory_cap_bytes=arguments.memory_cap_bytes,
    )
    for name, value in (("time-limit", arguments.time_limit), ("effort", arguments.effort)):
        if value is not None and not value > 0:
            msg = f"--{name} must be more than 0, got {value:g}"
            raise ValueError(msg)
    if arguments.recompute and arguments.memory_cap_bytes is None:
        msg = "--recompute saves bytes, so it goes with --memory-cap-bytes"
        raise ValueError(msg)
    if None not in {arguments.memory_cap, arguments.memory_cap_bytes}:
        msg = "--memory-cap and --memory-cap-bytes are both given; leave one out"
        raise ValueError(msg)
    options = read_costs(arguments.costs, arguments.transfer)
    if arguments.stages_per_rank is None and options.num_listed:
        found = options.per_stage(options.num_listed)
    else:
        found = options.per_stage(arguments.ranks * (arguments.stages_per_rank or 1))
    if arguments.memory_cap_bytes is not None and not found.activation_bytes:
        msg = "--memory-cap-bytes needs --costs FILE with activation_bytes; or give --memory-cap"
        raise ValueError(msg)
    if found.num_stages % arguments.ranks:
        got = f"--costs {arguments.costs} has {found.num_stages} stages"
        msg = f"{got}, and --ranks is {arguments.ranks}; expected a multiple of that"
        raise ValueError(msg)
    return found


def _asked(arguments: Arguments, costs: CostModel) -> dict[str, Any]:
    """What ``search`` takes by keyword; what was left out has its default there."""
    limit = {} if arguments.time_limit is None else {"time_limit_s": arguments.time_limit}
    return {
        "num_ranks": arguments.ranks,
        "num_microbatches": arguments.microbatches,
        "memory_cap": arguments.memory_cap,
        "memory_cap_bytes": arguments.memory_cap_bytes,
        "placement": _placement(arguments, costs.num_stages),
        "objective": arguments.objective,
        "split_backward": {"any": None, "whole": False, "split": True}[arguments.backward],
        "recompute": arguments.recompute,
        "seed": arguments.seed,
        "effort": arguments.effort,
        "solver": arguments.solver,
        **limit,
    }


def _placement(arguments: Arguments, num_stages: int) -> Placement | None:
    if arguments.placement == "any":
        return None
    build = Placement.loop if arguments.placement == "loop" else Placement.wave
    return build(arguments.ranks, num_stages // arguments.ranks)


def _shown(found: Found, costs: CostModel) -> Shown:
    program = lower(found.schedule, recompute=found.recompute)
    timeline = simulate(program, costs)
    bound_s, objective = found.lower_bound_s, found.objective
    return Shown(program, timeline, costs, bound_s, objective, "any schedule that was allowed")


def _search_object(found: Found, arguments: Arguments) -> dict[str, object]:
    return {
        "memory_cap": arguments.memory_cap,
        "memory_cap_bytes": arguments.memory_cap_bytes,
        "proven": found.proven,
        "method": found.method,
        "seed": arguments.seed,
        "recompute": sorted(found.recompute),
    }


def _verdict(found: Found) -> tuple[str, str, str]:
    if found.proven:
        return "optimal", "proven", f"nothing that was allowed is shorter; found by {found.method}"
    return "optimal", "not proven", f"found by {found.method}"
