"""How good ``intandem.search`` is: against proven optima, public schedulers, built-ins, bounds.

    python benchmarks/search/run.py optimal public grid bound large > results.md

Each part prints one table. Everything but the seconds is the same on every machine.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import defaultdict
from multiprocessing import Pool
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "unit"))

from search_cases import CASES, found_for, public_cases

from intandem.costs import CostModel
from intandem.planner import search
from intandem.planner.builtin import Wanted, builtin_schedules, peaks
from intandem.planner.problem import Memory
from intandem.simulator import simulate

if TYPE_CHECKING:
    from intandem.planner import Found


def main() -> None:
    """Print the tables that are asked for."""
    parts = {
        "optimal": optimal,
        "public": public,
        "grid": grid,
        "bound": bound,
        "large": large,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="+", choices=list(parts))
    parser.add_argument("--effort", type=float, default=1.0)
    parser.add_argument("--solver", default="none", choices=["none", "cp-sat"])
    parser.add_argument("--every", type=int, default=1, help="take every n-th case")
    arguments = parser.parse_args()
    for part in arguments.parts:
        parts[part](arguments)


def table(title: str, head: list[str], rows: list[list[str]]) -> None:
    """Print a table in Markdown."""
    print(f"\n**{title}**\n")
    print("|" + "|".join(head) + "|\n|" + "---|" * len(head))
    for row in rows:
        print("|" + "|".join(row) + "|")
    sys.stdout.flush()


def percent(values: list[float]) -> str:
    """Mean and largest, in percent."""
    return f"{100 * sum(values) / len(values):.3f}% | {100 * max(values):.2f}%"


def _optimal_one(job: tuple[dict[str, Any], float, str]) -> tuple[dict[str, Any], Found, float]:
    case, effort, solver = job
    began = time.perf_counter()
    found = found_for(case, effort=effort, solver=solver)
    return case, found, time.perf_counter() - began


def optimal(arguments: argparse.Namespace) -> None:
    """Gaps to proven optima by placement, objective and cap."""
    jobs = [(c, arguments.effort, arguments.solver) for c in CASES["optimal"][:: arguments.every]]
    groups = defaultdict(list)
    with Pool(2) as pool:
        for case, found, seconds in pool.imap_unordered(_optimal_one, jobs):
            stages = case["p"] * (1 if case["placement"] == "single" else 2)
            order = (case["mem_limit"] > stages * case["mem_f"]) - (
                case["mem_limit"] < stages * case["mem_f"]
            )
            cap = {-1: "below P", 0: "at P", 1: "above P"}[order]
            key = case["placement"], found.objective, cap
            gap = found.value_s / case["best"] - 1
            below = 1 - found.lower_bound_s / case["best"]
            one = gap, found.proven, seconds, below
            groups[key].append(one)
            groups["all", "", ""].append(one)
    rows = []
    for key, ones in sorted(groups.items()):
        gaps = [gap for gap, *_ in ones]
        exact = sum(gap < 1e-9 for gap in gaps)
        proven = sum(p for _, p, *_ in ones)
        seconds = sum(s for *_, s, _ in ones) / len(ones)
        below = 100 * sum(b for *_, b in ones) / len(ones)
        row = [*key, str(len(ones)), percent(gaps), str(exact), str(proven), f"{below:.1f}%"]
        rows.append([*row, f"{seconds:.1f}"])
    head = "placement objective cap cases mean largest optimal proven bound-below seconds".split()
    table("Gap to the proven optimum", head, rows)


def _public_one(job: tuple[dict[str, Any], str, float]) -> tuple[dict[str, Any], str, Found]:
    case, objective, effort = job
    found = found_for(case, objective=objective, effort=effort)
    return case, objective, found


def public(arguments: argparse.Namespace) -> None:
    """Against what public schedulers reach in the same memory."""
    names = "global", "rank"
    cases = public_cases()[:: arguments.every]
    jobs = [(case, objective, arguments.effort) for case in cases for objective in names]
    groups = defaultdict(list)
    with Pool(2) as pool:
        for case, objective, found in pool.imap_unordered(_public_one, jobs):
            value = case.get("makespan" if objective == "global" else "longest_stage")
            key = case.get("schedule", "zero-bubble heuristic"), objective
            groups[key].append(None if value is None else found.value_s / value)
            if value is not None and found.value_s > value * (1 + 1e-12):
                ratio = 100 * (found.value_s / value - 1)
                print(f"longer by {ratio:.2f}%: {objective} {case}", file=sys.stderr)
    rows = []
    for key, ones in sorted(groups.items()):
        known = [one for one in ones if one is not None]
        longer, shorter = sum(r > 1 + 1e-12 for r in known), sum(r < 1 - 1e-12 for r in known)
        mean = f"{sum(known) / len(known):.4f}"
        counts = [str(len(ones)), str(len(ones) - len(known)), str(shorter), str(longer)]
        rows.append([*key, *counts, mean, f"{min(known):.3f}"])
    head = "scheduler objective cases infeasible-there shorter longer mean-ratio best-ratio".split()
    table("Against public schedulers", head, rows)


def uneven(num_stages: int, seed: int) -> CostModel:
    """Costs of unequal stages and transfers that take latency and bytes."""
    draw = random.Random(seed)
    seconds = [tuple(draw.uniform(0.7, 1.3) for _ in range(num_stages)) for _ in "FIW"]
    edges = (10,) * (num_stages - 1)
    return CostModel(*seconds, latency_s=0.05, bandwidth_bytes_per_s=100.0, boundary_bytes=edges)


def _grid_one(job: tuple[int, int, int, float, float]) -> tuple[float, list[float]]:
    num_ranks, stages_per_rank, factor, share, effort = job
    num_stages, count = num_ranks * stages_per_rank, factor * num_ranks
    costs = uneven(num_stages, num_stages * count)
    cap = max(stages_per_rank, round(share * num_stages))
    ones = (1,) * num_stages
    memory = Memory(ones, (0,) * num_stages, ones)
    fitting = [
        simulate(schedule, costs).makespan_s
        for schedule in builtin_schedules(Wanted(costs, num_ranks, count, (cap,)))
        if schedule.placement.num_replicas == 1 and max(peaks(schedule, memory)) <= cap
    ]
    values = [
        search(
            costs,
            num_ranks=num_ranks,
            num_microbatches=count,
            memory_cap=cap,
            effort=effort,
            solver="none",
            start_from_builtins=started,
        ).makespan_s
        for started in (True, False)
    ]
    return share, [value / min(fitting) for value in values]


def grid(arguments: argparse.Namespace) -> None:
    """Against the best built-in that fits, with and without starting from them."""
    shares = 0.5, 1.0, 2.0
    jobs = [
        (ranks, stages, factor, share, arguments.effort)
        for ranks in (2, 4, 8)
        for stages in (1, 2)
        for factor in (1, 2, 4)
        for share in shares
    ][:: arguments.every]
    groups = defaultdict(list)
    with Pool(2) as pool:
        for share, ratios in pool.imap_unordered(_grid_one, jobs):
            groups[share].append(ratios)
    rows = []
    for share, ones in sorted(groups.items()):
        row = [f"{share:g} P V", str(len(ones))]
        for side in zip(*ones, strict=True):
            row += [f"{sum(side) / len(side):.4f}", f"{max(side):.4f}"]
        rows.append(row)
    head = "cap cases started:mean started:largest alone:mean alone:largest".split()
    table("Makespan / best built-in that fits", head, rows)


def bound(arguments: argparse.Namespace) -> None:
    """Distance from the lower bound without a cap, M at least 2 P."""
    rows = []
    for num_ranks, stages, factor in (
        (2, 1, 2),
        (4, 1, 2),
        (4, 2, 2),
        (8, 1, 2),
        (8, 2, 2),
        (8, 2, 4),
    ):
        gaps = [
            search(
                uneven(num_ranks * stages, seed),
                num_ranks=num_ranks,
                num_microbatches=factor * num_ranks,
                effort=arguments.effort,
                solver="none",
            ).gap
            for seed in range(4)
        ]
        rows.append([str(num_ranks), str(stages), str(factor * num_ranks), percent(gaps)])
    table("Distance from the lower bound, no cap", ["P", "V", "M", "mean", "largest"], rows)


def large(arguments: argparse.Namespace) -> None:
    """Seconds and distance of large problems."""
    rows = []
    for ranks, stages, count, cap in (
        (8, 1, 32, None),
        (8, 2, 32, None),
        (8, 1, 32, 6),
        (16, 1, 256, 16),
        (64, 1, 512, None),
        (64, 1, 512, 64),
    ):
        began = time.perf_counter()
        found = search(
            uneven(ranks * stages, 0),
            num_ranks=ranks,
            num_microbatches=count,
            memory_cap=cap,
            effort=arguments.effort,
            solver="none",
        )
        seconds = time.perf_counter() - began
        numbers = [str(ranks), str(stages), str(count), str(cap or "none")]
        peak = str(max(found.peak_activations))
        rows.append([*numbers, f"{100 * found.gap:.2f}%", found.method, peak, f"{seconds:.1f}"])
    head = ["P", "V", "M", "cap", "above the bound", "method", "most held", "seconds"]
    table("Large problems", head, rows)


if __name__ == "__main__":
    main()
