"""Run schedules on emulated ranks and compare each step with what the simulator says.

    python benchmarks/emulated/run.py --json found.json --plot benchmarks/emulated  # 15 minutes
    python benchmarks/emulated/run.py --quick                                       # a look
    python benchmarks/emulated/run.py --full --steps 5                              # 40 minutes
    python benchmarks/emulated/run.py --ranks 4 --ms 2 --sides local torch

Ranks of ``local``, ``shared`` and ``gloo`` run the same executor, interpreter and transports that
train models; only computing is replaced by waits. ``torch`` is `torch.distributed.pipelining` with
modules that wait, against the makespan of its own order.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.results import Results, finish, parser_of
from common.rounds import Progress
from emulated.plan import (
    SCHEDULES,
    SHARES,
    SIDES,
    Setting,
    default_plan,
    full_plan,
    parts_of,
    quick_plan,
)
from emulated.report import figures, table
from emulated.theirs import Theirs

from intandem.rehearsal import TransportKind, rehearse
from intandem.simulator import simulate

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

NUM_WARMUP = 2


def ours(setting: Setting, steps: int) -> Iterator[dict[str, Any]]:
    """Rehearse a setting; yield what was found of each schedule."""
    parts = tuple(parts_of(setting))
    found = rehearse(parts, TransportKind(setting.side), num_steps=steps)
    for name, rehearsal in zip(setting.schedules, found, strict=True):
        yield {
            "schedule": name,
            "makespan_s": rehearsal.planned.makespan_s,
            "steps_s": [step.makespan_s for step in rehearsal.steps],
            "overslept": rehearsal.overslept,
            "transfer_s": max(transfer.seconds for transfer in rehearsal.transfers),
        }


def seconds_of(setting: Setting, steps: int) -> float:
    """Return what a setting takes if every step takes what the simulator says without links."""
    planned = (simulate(part.program, part.costs).makespan_s for part in parts_of(setting))
    return (steps + NUM_WARMUP) * sum(planned)


def plan_of(options: argparse.Namespace) -> list[Setting]:
    """Return what the options ask for."""
    if options.quick:
        return quick_plan()
    asked = (options.sides, options.ranks, options.ms, options.stages, options.schedules)
    if not options.full and not any(asked):
        return default_plan()
    return full_plan(
        options.sides or SIDES, options.ranks or (4, 8, 16), options.ms or (2, 10, 20),
        options.stages or tuple(SHARES), options.schedules or SCHEDULES,
    )  # fmt: skip


def measure(options: argparse.Namespace) -> Results:
    """Run all settings; settings of torch with as many ranks share their processes."""
    plan = plan_of(options)
    cost_s = {setting: seconds_of(setting, options.steps) for setting in plan}
    progress = Progress(round(sum(cost_s.values())), "planned seconds")
    print(f"about {sum(cost_s.values()) / 60:.1f} min and start-up", file=sys.stderr, flush=True)
    theirs: dict[int, Theirs] = {}
    rows = []
    try:
        for setting in plan:
            if setting.side == "torch":
                if setting.num_ranks not in theirs:
                    theirs[setting.num_ranks] = Theirs(setting.num_ranks)
                found = theirs[setting.num_ranks].rows(setting, options.steps)
            else:
                found = ours(setting, options.steps)
            rows += [setting._asdict() | row | {"load": os.getloadavg()[0]} for row in found]
            progress.advance(round(cost_s[setting]))
    finally:
        for side in theirs.values():
            side.close()
    return {"rows": rows}


def main() -> None:
    """Run what was asked for and print it."""
    parser = parser_of(__doc__)
    parser.add_argument("--quick", action="store_true", help="P = 4, 10 ms; half a minute")
    parser.add_argument("--full", action="store_true", help="everything, about half an hour")
    parser.add_argument("--sides", nargs="+", choices=SIDES)
    parser.add_argument("--ranks", type=int, nargs="+")
    parser.add_argument("--ms", type=int, nargs="+")
    parser.add_argument("--stages", nargs="+", choices=list(SHARES))
    parser.add_argument("--schedules", nargs="+")
    parser.add_argument("--steps", type=int, default=3, help="that count; two more come before")
    options = parser.parse_args()
    finish(options, lambda: measure(options), table, figures)


if __name__ == "__main__":
    main()
