"""Run schedules on emulated ranks and compare each step with what the simulator says.

    PYTHONPATH=src python benchmarks/emulated/run.py             # all; half an hour
    PYTHONPATH=src python benchmarks/emulated/run.py --small     # a look: P = 4, two steps
    PYTHONPATH=src python benchmarks/emulated/run.py --ranks 4 --ms 2 --transport local

Ranks run the same executor, interpreter and transports that train models; only computing is
replaced by waits.
"""

from __future__ import annotations

import argparse
import json
import os
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from intandem.costs import CostModel
from intandem.lowering import lower
from intandem.rehearsal import Part, TransportKind, rehearse
from intandem.schedules import build_schedule
from intandem.schedules.registry import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from intandem.rehearsal import Rehearsal

SCHEDULES = ("gpipe", "1f1b", "interleaved", "zb-h1", "zb-v")
BOUNDARY_BYTES = 65536
UNEQUAL = (1.0, 1.3, 0.8, 1.1)
"""How long stages of a P-th of the model take, relative to the first, over and over."""

MOST_RANKS = {TransportKind.LOCAL: 16, TransportKind.GLOO: 8}


def costs_of(
    num_stages: int, num_ranks: int, action_s: float, shares: Sequence[float]
) -> CostModel:
    """F, I and W of a P-th of the model take ``action_s`` each, times the share of that part."""
    per_rank = num_stages // num_ranks
    stage_s = tuple(
        action_s * shares[stage // per_rank % len(shares)] / per_rank for stage in range(num_stages)
    )
    return CostModel(stage_s, stage_s, stage_s, boundary_bytes=(BOUNDARY_BYTES,) * (num_stages - 1))


def part_of(name: str, num_ranks: int, action_s: float, shares: Sequence[float]) -> Part:
    """A schedule of M = 4P micro-batches; one that is made for its costs gets them."""
    count = 4 * num_ranks
    takes = next(family.takes for family in FAMILIES if family.name == name)
    sketch = build_schedule(name, num_ranks=num_ranks, num_microbatches=count)
    costs = costs_of(sketch.num_stages, num_ranks, action_s, shares)
    schedule = sketch
    if "costs" in takes:
        schedule = build_schedule(name, num_ranks=num_ranks, num_microbatches=count, costs=costs)
    return Part(lower(schedule), costs)


def settings(asked: argparse.Namespace) -> Iterator[tuple[TransportKind, int, int, str]]:
    """Transport, ranks, milliseconds and stages of every run."""
    kinds = [TransportKind(kind) for kind in asked.transport]
    for kind, ranks, ms, stages in product(kinds, asked.ranks, asked.ms, asked.stages):
        if ranks <= MOST_RANKS[kind]:
            yield kind, ranks, ms, stages


def row_of(rehearsal: Rehearsal, ms: int, stages: str) -> dict[str, object]:
    """The figures of one rehearsal."""
    program = rehearsal.part.program
    return {
        "schedule": program.name,
        "transport": rehearsal.kind.value,
        "num_ranks": program.num_ranks,
        "num_microbatches": program.num_microbatches,
        "action_ms": ms,
        "stages": stages,
        "makespan_s": rehearsal.planned.makespan_s,
        "measured_s": rehearsal.measured_s,
        "ratio": rehearsal.ratio,
        "overslept": rehearsal.overslept,
        "transfer_s": max(transfer.seconds for transfer in rehearsal.transfers),
        "load": os.getloadavg()[0],
    }


def main() -> None:
    """Run what was asked for and print a line for each."""
    asked = _parser().parse_args()
    if asked.small:
        asked.ranks, asked.ms, asked.steps = [4], [10], 2
    shares = {"equal": (1.0,), "unequal": UNEQUAL}
    print("transport ranks  ms stages   schedule     simulated  measured  ratio  overslept  load")
    rows = []
    for kind, ranks, ms, stages in settings(asked):
        parts = [part_of(name, ranks, ms / 1e3, shares[stages]) for name in asked.schedules]
        for rehearsal in rehearse(parts, kind, num_steps=asked.steps):
            row = row_of(rehearsal, ms, stages)
            rows.append(row)
            print(
                f"{kind.value:9} {ranks:5} {ms:3} {stages:8} {row['schedule']:12}"
                f"{row['makespan_s']:9.4f} s {row['measured_s']:7.4f} s {row['ratio']:6.3f}"
                f"{row['overslept']:10.2%} {row['load']:6.1f}",
                flush=True,
            )
    if asked.out is not None:
        asked.out.write_text(json.dumps(rows, indent=1), "utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--ms", type=int, nargs="+", default=[2, 10, 20])
    parser.add_argument("--stages", nargs="+", default=["equal", "unequal"])
    parser.add_argument("--transport", nargs="+", default=["local", "gloo"])
    parser.add_argument("--schedules", nargs="+", default=list(SCHEDULES))
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="P = 4, 10 ms, two steps")
    parser.add_argument("--out", type=Path, help="write a JSON file as well")
    return parser


if __name__ == "__main__":
    main()
