"""Measure what emulated ranks gain where no barrier holds a step back until the last has ended.

    python benchmarks/overlap/run.py --json found.json --plot benchmarks/overlap  # 15 minutes
    python benchmarks/overlap/run.py --quick                                      # half a minute
    python benchmarks/overlap/run.py --ranks 4 --microbatches 8 --sides shared --rounds 15

Each turn of a schedule runs some steps that all ranks begin together, and then as many of which
each rank begins the next when it has done the last: same processes, same program, same waits.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.results import Results, finish, parser_of
from common.rounds import Progress
from overlap.report import figures, table

from intandem.costs import CostModel
from intandem.lowering import lower
from intandem.rehearsal import Part, TransportKind, rehearse
from intandem.schedules import build_schedule

if TYPE_CHECKING:
    import argparse

SCHEDULES = ("1f1b", "zb-h1", "zb-2p")
BOUNDARY_BYTES = 65536
ACTION_S = 0.01
STEPS = 3
NUM_WARMUP = 2


def part_of(name: str, num_ranks: int, num_microbatches: int) -> Part:
    """Lower a schedule whose F, I and W take as long as each other."""
    schedule = build_schedule(name, num_ranks=num_ranks, num_microbatches=num_microbatches)
    costs = CostModel.uniform(num_ranks, ACTION_S, ACTION_S, ACTION_S)
    costs = replace(costs, boundary_bytes=(BOUNDARY_BYTES,) * (num_ranks - 1))
    return Part(lower(schedule), costs)


def measure(options: argparse.Namespace) -> Results:
    """Take turns: in every round each side rehearses each schedule of each size once."""
    quick = options.quick
    sides = options.sides or ("local", "shared")
    sizes = [
        (num_ranks, num_microbatches)
        for num_ranks in options.ranks or ((4,) if quick else (2, 4))
        for num_microbatches in options.microbatches or ((8,) if quick else (8, 16))
    ]
    rounds = 2 if quick else options.rounds
    progress = Progress(rounds * len(sides) * len(sizes), "turns")
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for _ in range(rounds):
        for side in sides:
            for size in sizes:
                parts = [part_of(name, *size) for name in options.schedules]
                found = rehearse(parts, TransportKind(side), num_steps=STEPS, overlap=True)
                for name, one in zip(options.schedules, found, strict=True):
                    row = rows.setdefault((side, *size, name), _row(side, *size, name))
                    row["simulated_gain"].append(one.planned.makespan_s / one.planned_overlapping_s)
                    row["together_s"].append(one.measured_s)
                    row["overlapping_s"].append(one.overlapping_s)
                progress.advance()
    return {"rows": list(rows.values())}


def _row(side: str, num_ranks: int, num_microbatches: int, schedule: str) -> dict[str, Any]:
    return {
        "side": side,
        "num_ranks": num_ranks,
        "num_microbatches": num_microbatches,
        "schedule": schedule,
        "simulated_gain": [],
        "together_s": [],
        "overlapping_s": [],
    }


def main() -> None:
    """Run what was asked for and print it."""
    parser = parser_of(__doc__)
    parser.add_argument("--quick", action="store_true", help="P = 4, M = 8, two rounds")
    parser.add_argument("--sides", nargs="+", choices=[kind.value for kind in TransportKind])
    parser.add_argument("--ranks", type=int, nargs="+")
    parser.add_argument("--microbatches", type=int, nargs="+")
    parser.add_argument("--schedules", nargs="+", default=list(SCHEDULES))
    parser.add_argument("--rounds", type=int, default=7, help="turns of each")
    options = parser.parse_args()
    finish(options, lambda: measure(options), table, figures)


if __name__ == "__main__":
    main()
