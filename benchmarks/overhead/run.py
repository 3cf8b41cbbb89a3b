"""Processor time that the runtime takes for each action, apart from the model's own.

    python benchmarks/overhead/run.py --json found.json --plot benchmarks/overhead  # a few minutes
    python benchmarks/overhead/run.py --quick                                       # under a minute

What steps take in processor seconds of all ranks, less what the same forwards and backwards take
in plain PyTorch in one process, is divided by the number of actions. The plain loop, ranks as
threads, ranks as processes (in shared memory and over Gloo) and, for 1F1B,
`torch.distributed.pipelining` on processes take turns, once their gradients have been compared;
medians of the rounds. Figures of processes contain Gloo's own threads. Besides: seconds to build
and lower a large schedule, what a message takes between two idle ranks by its size, what it takes
to note when an action ran and when a message arrived, and how long it is from nothing to the end
of the first step.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from common.gradients import largest_error
from common.results import Results, finish, parser_of
from common.rounds import take_turns
from common.workers import Workers, rank_environments
from overhead.noting import noting_us
from overhead.report import figures, table

import intandem as it
from intandem.costs import CostModel
from intandem.lowering import lower
from intandem.rehearsal import Part, TransportKind, rehearse

if TYPE_CHECKING:
    import argparse

    from torch import Tensor

SIDES = ("plain", "local", "shared", "gloo", "torch")
ON_PROCESSES = ("shared", "gloo", "torch")
HOPS = tuple(4**power << 10 for power in range(1, 8))
"""Bytes of messages: 4 KiB to 16 MiB."""

ACTIONS_IN_TURN = 4000
"""At least, so that clocks are fine enough."""


class Case(NamedTuple):
    """A pipeline to be measured."""

    schedule: str
    ranks: int
    microbatches: int


CASES = (
    Case("1f1b", 2, 8), Case("1f1b", 2, 16), Case("1f1b", 2, 32), Case("1f1b", 2, 64),
    Case("1f1b", 4, 32), Case("1f1b", 8, 32), Case("zb-h1", 2, 32),
)  # fmt: skip
QUICK = (Case("1f1b", 2, 8), Case("1f1b", 2, 32))


def start(side: str, case: Case) -> Workers:
    """Start the processes of a side."""
    command = [sys.executable, str(Path(__file__).resolve().parent / "rank.py"), side]
    environments = rank_environments(case.ranks) if side in ON_PROCESSES else [{}]
    return Workers([*command, *map(str, case)], environments)


def gradients(side: Workers) -> dict[str, Tensor]:
    """Run a step; return the gradients of all processes."""
    return {n: torch.tensor(v) for found in side.tell("gradients") for n, v in found.items()}


def measure_case(case: Case, rounds: int) -> dict[str, Any]:
    """Return microseconds per action of each side in each round.

    Gradients are compared with the plain loop's before anything is timed.

    Raises:
        WorkerError: if a side has other gradients.
    """
    order = it.build_schedule(
        case.schedule, num_ranks=case.ranks, num_microbatches=case.microbatches
    )
    num_actions = sum(map(len, order.actions))
    num_steps = -(-ACTIONS_IN_TURN // num_actions)
    names = [name for name in SIDES if name != "torch" or case.schedule == "1f1b"]
    sides: dict[str, Workers] = {}
    errors: dict[str, float] = {}
    expected: dict[str, Tensor] = {}
    try:
        for name in names:
            sides[name] = start(name, case)
            found = gradients(sides[name])
            expected = found if name == "plain" else expected
            errors[name] = largest_error(found, expected)
            sides[name].tell(f"steps {num_steps // 4 + 2}")  # not counted

        def us_per_action(name: str) -> float:
            return 1e6 * sum(sides[name].tell(f"steps {num_steps}")) / num_steps / num_actions

        turns = take_turns(names, rounds, us_per_action, " ".join(map(str, case)))
    finally:
        for side in sides.values():
            side.close()
    return case._asdict() | {"gradient_error": errors, "us_per_action": turns}


def building_s(num_ranks: int, num_microbatches: int, stages_per_rank: int) -> float:
    """Seconds to build and lower an interleaved schedule."""
    began_s = time.perf_counter()
    order = it.build_schedule(
        "interleaved",
        num_ranks=num_ranks,
        num_microbatches=num_microbatches,
        stages_per_rank=stages_per_rank,
    )
    lower(order)
    return time.perf_counter() - began_s


def hops() -> list[dict[str, float]]:
    """Microseconds that a message takes from one idle rank to another, by size."""
    rows: list[dict[str, float]] = [{"bytes": size} for size in HOPS]
    order = lower(it.build_schedule("1f1b", num_ranks=2, num_microbatches=1))
    costs = CostModel.uniform(2, 1e-3, 1e-3, 1e-3)
    parts = [Part(order, replace(costs, boundary_bytes=(size,))) for size in HOPS]
    for kind in TransportKind:
        found = {t.num_bytes: t.seconds for t in rehearse(parts, kind, num_steps=1)[0].transfers}
        for row in rows:
            row[kind.value] = 1e6 * found[int(row["bytes"])]
    return rows


def start_s(side: str) -> float:
    """Seconds from nothing to the end of the first step: two ranks, fresh interpreters."""
    began_s = time.perf_counter()
    workers = start(side, Case("1f1b", 2, 8))
    workers.tell("steps 1")
    passed_s = time.perf_counter() - began_s
    workers.close()
    return passed_s


def measure(options: argparse.Namespace) -> Results:
    """Measure everything."""
    repeats = 1 if options.quick else 3
    return {
        "building_s": [building_s(64, 512, 2) for _ in range(repeats)],
        "start_s": {side: [start_s(side) for _ in range(repeats)] for side in SIDES},
        "hops_us": hops(),
        "noting_us": noting_us(),
        "cases": [measure_case(c, options.rounds) for c in (QUICK if options.quick else CASES)],
    }


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--quick", action="store_true", help="two cases, no repeats")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side")
    options = parser.parse_args()
    finish(options, lambda: measure(options), table, figures)


if __name__ == "__main__":
    main()
