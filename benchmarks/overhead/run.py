"""Processor time that the runtime takes for each action, apart from the model's own.

    python benchmarks/overhead/run.py [--steps 20] [--plot benchmarks/overhead]

Each stage is one tiny linear block with a tanh, so that hardly anything is computed. What a step
takes in processor seconds of all ranks, less what the same forwards and backwards take in plain
PyTorch in one process, is divided by the number of actions. Pipelines and the plain loop take
turns; medians of the rounds. `gloo` runs one process per rank; its figure contains Gloo's own
threads. Besides: seconds to build and lower a large schedule, what a message takes between two idle
ranks by its size, and how long it is from nothing to the end of the first step.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import intandem as it
from intandem.costs import CostModel
from intandem.lowering import lower
from intandem.rehearsal import Part, TransportKind, rehearse

WIDTH = 16
ROWS = 2
CASES = [(2, 8), (2, 32), (4, 16), (4, 64)]
"""Ranks and micro-batches."""

HOPS = (4 << 10, 64 << 10, 1 << 20, 16 << 20)
"""Bytes of messages."""


def model_of(num_stages: int) -> nn.Module:
    """One small block for every stage."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(num_stages))
    )


class Local:
    """All ranks as threads of this process, or this process's rank of several."""

    def __init__(self, schedule: str, ranks: int, microbatches: int, *, launched: bool) -> None:
        self.order = it.build_schedule(schedule, num_ranks=ranks, num_microbatches=microbatches)
        torch.manual_seed(1)
        self.batch = torch.randn(microbatches * ROWS, WIDTH)
        self.pipe = it.Pipeline(
            model_of(self.order.num_stages),
            example=self.batch,
            loss=F.mse_loss,
            ranks=None if launched else ranks,
            microbatches=microbatches,
            schedule=schedule,
            options=it.Options(threads_per_rank=1),
        )

    def cpu_s(self, steps: int) -> float:
        """Processor seconds of this process for so many steps."""
        began = time.process_time()
        for _ in range(steps):
            float(self.pipe.step(self.batch))
        return time.process_time() - began


class Gloo:
    """One process per rank."""

    def __init__(self, schedule: str, ranks: int, microbatches: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        self.processes = []
        for rank in range(ranks):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, __file__, "--worker", schedule, str(ranks), str(microbatches)],
                    env=os.environ | place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                    text=True,
                )
            )  # fmt: skip

    def cpu_s(self, steps: int) -> float:
        """Processor seconds of all processes for so many steps."""
        for process in self.processes:
            assert process.stdin is not None  # noqa: S101
            print(steps, file=process.stdin, flush=True)
        return sum(float(process.stdout.readline()) for process in self.processes if process.stdout)

    def close(self) -> None:
        """End all processes."""
        for process in self.processes:
            process.kill()
            process.wait()


def work(schedule: str, ranks: str, microbatches: str) -> None:
    """Be one rank: run as many steps as each line says, and print the seconds."""
    side = Local(schedule, int(ranks), int(microbatches), launched=True)
    for line in sys.stdin:
        print(side.cpu_s(int(line)), flush=True)


def plain_cpu_s(order: it.Schedule, steps: int) -> float:
    """Processor seconds of the same forwards and backwards, one after the other, no pipeline."""
    model = model_of(order.num_stages)
    x = torch.randn(ROWS, WIDTH)
    began = time.process_time()
    for _ in range(steps * order.num_microbatches):
        F.mse_loss(model(x), x).backward()
    return time.process_time() - began


def measure(schedule: str, ranks: int, microbatches: int, steps: int) -> dict[str, Any]:
    """Microseconds per action of one case."""
    local, gloo = Local(schedule, ranks, microbatches, launched=False), None
    found: dict[str, list[float]] = {"local": [], "gloo": [], "plain": []}
    num_actions = sum(map(len, local.order.actions))
    try:
        gloo = Gloo(schedule, ranks, microbatches)
        for sides in (local, gloo):
            sides.cpu_s(2)
        for _ in range(5):
            found["local"].append(local.cpu_s(steps))
            found["gloo"].append(gloo.cpu_s(steps))
            found["plain"].append(plain_cpu_s(local.order, steps))
    finally:
        local.pipe.close()
        if gloo is not None:
            gloo.close()
    us = {name: 1e6 * median(values) / steps / num_actions for name, values in found.items()}
    row = {"schedule": schedule, "ranks": ranks, "microbatches": microbatches, **us}
    return row | {f"{name} over plain": us[name] - us["plain"] for name in ("local", "gloo")}


def building_s(num_ranks: int, num_microbatches: int, stages_per_rank: int) -> float:
    """Seconds to build and lower an interleaved schedule."""
    began = time.perf_counter()
    order = it.build_schedule(
        "interleaved",
        num_ranks=num_ranks,
        num_microbatches=num_microbatches,
        stages_per_rank=stages_per_rank,
    )
    lower(order)
    return time.perf_counter() - began


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


def start_s(kind: str) -> float:
    """Seconds from nothing to the end of the first step: two ranks, a fresh interpreter."""
    began = time.perf_counter()
    if kind == "local":
        subprocess.run([sys.executable, __file__, "--first-step"], check=True)
    else:
        gloo = Gloo("1f1b", 2, 8)
        gloo.cpu_s(1)
        gloo.close()
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--first-step"]:
        Local("1f1b", 2, 8, launched=False).cpu_s(1)
        return
    if sys.argv[1:2] == ["--worker"]:
        work(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20, help="of each side in each of five rounds")
    parser.add_argument("--plot", type=Path, help="folder to draw into")
    parser.add_argument("--json", type=Path, help="file to write all figures to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    built_s = median(building_s(64, 512, 2) for _ in range(3))
    print(f"building and lowering P=64, M=512, V=2: {built_s:.2f} s")
    for kind in ("local", "gloo"):
        print(f"first step of two ranks, {kind}: {median(start_s(kind) for _ in range(3)):.1f} s")
    print("microseconds of a message between idle ranks\n|bytes|local|gloo|\n|---|---|---|")
    for hop in hops():
        print(f"|{hop['bytes']}|{hop['local']:.0f}|{hop['gloo']:.0f}|")
    rows = [measure("1f1b", *case, options.steps) for case in CASES]
    rows.append(measure("zb-h1", 2, 16, options.steps))
    print("microseconds of processor time per action, above the same work in plain PyTorch")
    print("|schedule|P|M|plain|local|gloo|\n|---|---|---|---|---|---|")
    for row in rows:
        counts = f"{row['schedule']}|{row['ranks']}|{row['microbatches']}|{row['plain']:.0f}"
        print(f"|{counts}|{row['local over plain']:.0f}|{row['gloo over plain']:.0f}|")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    if options.plot:
        plot(rows, options.plot)


def plot(rows: list[dict[str, Any]], folder: Path) -> None:
    """Draw microseconds per action, as PNG and SVG."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    for offset, name in ((-0.2, "local"), (0.2, "gloo")):
        heights = [row[f"{name} over plain"] for row in rows]
        places = [place + offset for place in range(len(rows))]
        axes.bar_label(axes.bar(places, heights, 0.38, label=name), fmt="%.0f", fontsize=8)
    labels = [f"{r['schedule']}\nP={r['ranks']} M={r['microbatches']}" for r in rows]
    axes.set_xticks(range(len(rows)), labels)
    axes.set_ylabel("µs of processor time per action")
    axes.set_title("What the runtime takes (lower is better)")
    axes.legend()
    for suffix in ("png", "svg"):
        figure.savefig(folder / f"overhead.{suffix}", dpi=150)


if __name__ == "__main__":
    main()
