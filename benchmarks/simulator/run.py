"""Time the simulator: actions per second, growth with the number of actions, one very large run.

    PYTHONPATH=src python benchmarks/simulator/run.py             # all
    PYTHONPATH=src python benchmarks/simulator/run.py speed       # actions per second
    PYTHONPATH=src python benchmarks/simulator/run.py growth      # ... as pipelines get larger
    PYTHONPATH=src python benchmarks/simulator/run.py large       # 1,024 ranks, 8,192 micro-batches

Times are processor seconds of this thread, the best of a few rounds; building the schedule is not
part of them, verifying it is.
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from intandem.costs import CostModel
from intandem.ir import Placement
from intandem.machine import Link, Machine
from intandem.schedules import build_schedule
from intandem.schedules.one_f_one_b import one_f_one_b_codes
from intandem.simulator import simulate, simulate_codes, simulate_figures, simulate_steps

if TYPE_CHECKING:
    from collections.abc import Callable

    from intandem.ir import Schedule

ROUNDS = 5
P, M = 64, 2048


def best_s(function: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Least processor seconds of ``function``."""
    found = []
    for _ in range(rounds):
        began = time.thread_time()
        function()
        found.append(time.thread_time() - began)
    return min(found)


def costs_of(num_stages: int) -> CostModel:
    """Latency, bytes and unequal stages."""
    costs = CostModel.uniform(num_stages, transfer_s=0.1)
    forward_s = tuple(1.0 + 0.01 * (stage % 7) for stage in range(num_stages))
    return replace(costs, forward_s=forward_s, boundary_bytes=(1,) * (num_stages - 1))


def num_actions(schedule: Schedule) -> int:
    """Of all ranks."""
    return sum(map(len, schedule.actions))


def speed() -> None:
    """Print actions per second of every way to simulate 1f1b."""
    schedule = build_schedule("1f1b", num_ranks=P, num_microbatches=M)
    costs, count = costs_of(P), num_actions(schedule)
    own = Machine(P, Link(0.1, 10.0))
    pairs = [(a, a + d) for a in range(P) for d in (1, -1) if 0 <= a + d < P]
    uplinks = replace(own, shared_wires=tuple(tuple(pairs[i : i + 8]) for i in range(0, 126, 8)))
    placement = Placement.loop(P)
    ways: dict[str, Callable[[], Any]] = {
        "timeline": lambda: simulate(schedule, costs),
        "figures": lambda: simulate_figures(schedule, costs),
        "figures, bytes keep links": lambda: simulate_figures(schedule, costs, own),
        "figures, links shared": lambda: simulate_figures(schedule, costs, uplinks),
        "figures, read once": lambda: simulate_codes(one_f_one_b_codes(P, M), placement, M, costs),
        "three steps, and one alone": lambda: simulate_steps(schedule, costs, num_steps=3),
    }
    print(f"1f1b, {P} ranks, {M} micro-batches, {count} actions")
    for name, function in ways.items():
        actions = 4 * count if name.startswith("three steps") else count
        print(f"  {name:28} {actions / best_s(function):12,.0f} actions/s", flush=True)


def growth() -> None:
    """Print seconds per action as ranks and micro-batches double."""
    for num_ranks in (16, 64, 256):
        for num_microbatches in (512, 1024, 2048):
            schedule = build_schedule(
                "1f1b", num_ranks=num_ranks, num_microbatches=num_microbatches
            )
            costs, count = costs_of(num_ranks), num_actions(schedule)
            seconds = best_s(lambda s=schedule, c=costs: simulate_figures(s, c), rounds=3)
            each = 1e6 * seconds / count
            print(f"  {num_ranks:4} ranks {num_microbatches:5} micro-batches {each:6.2f} us/action")


def large() -> None:
    """Print what 16.8 million actions take, read once and not kept."""
    num_ranks, num_microbatches = 1024, 8192
    costs = CostModel.uniform(num_ranks, transfer_s=0.1)
    rows = one_f_one_b_codes(num_ranks, num_microbatches)
    began = time.thread_time()
    figures = simulate_codes(rows, Placement.loop(num_ranks), num_microbatches, costs)
    seconds = time.thread_time() - began
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"1f1b, {num_ranks} ranks, {num_microbatches} micro-batches")
    print(f"  {figures.num_actions} actions in {seconds:.1f} s, ", end="")
    print(f"{figures.num_actions / seconds:,.0f} actions/s; peak of the process {peak_mb:.0f} MB")
    print(f"  makespan {figures.makespan_s:.1f}, bubble ratio {figures.bubble_ratio:.4f}, ", end="")
    print(f"activations {figures.peak_activations[0]} on the first rank")


if __name__ == "__main__":
    words = sys.argv[1:] or ["large", "speed", "growth"]
    for word in words:
        {"speed": speed, "growth": growth, "large": large}[word]()
