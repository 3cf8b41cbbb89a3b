"""A GPT on two cores: every schedule here, one process, two independent ones, and torch's pipeline.

    python benchmarks/two_cores/run.py [--microbatches 16] [--rounds 15] [--sides NAME ...]
    python benchmarks/two_cores/run.py --plot benchmarks/two_cores --json result.json

Sides take turns in every round, each for the same number of steps; all others sleep meanwhile. What
is compared is the ratio within a round. Model, initial weights, batch and optimizer are the same,
one thread per rank, and gradients are compared with those of one process before anything is timed.
`ceiling` is two independent processes, each doing all of the step's work at once: what two cores
could do if nothing had to wait.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent
SIZES = {"vocab": 4096, "seq": 128, "width": 256, "num_blocks": 8, "num_heads": 8, "rows": 2}
SIDES = [
    "one", "threads", "ceiling",
    *(f"local:{name}" for name in ("gpipe", "1f1b", "interleaved", "zb-h1", "zb-2p", "zb-v")),
    *(f"ahead:{name}" for name in ("1f1b", "zb-h1", "zb-2p")),
    *(f"gloo:{name}" for name in ("gpipe", "1f1b", "interleaved", "zb-h1", "zb-2p", "zb-v")),
    "torch:ScheduleGPipe:4", "torch:Schedule1F1B:4", "torch:Schedule1F1B:5",
    "torch:ScheduleInterleaved1F1B:2,4,6", "torch:ScheduleInterleavedZeroBubble:2,4,6",
    "torch:ScheduleZBVZeroBubble:2,4,6",
]  # fmt: skip
"""torch's stages begin at the blocks named: even in number, or 5 | 3, about even in time."""

TOLERANCE = 1e-4
"""Of gradients in float32, relative to their norm."""


class Side:
    """The processes of one side."""

    def __init__(self, name: str, options: dict[str, int]) -> None:
        self.name = name
        self.world = 2 if name == "ceiling" or name.startswith(("gloo", "torch")) else 1
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        self.processes = [
            subprocess.Popen(
                [sys.executable, str(HERE / "worker.py"), name, str(rank), str(self.world), port,
                 json.dumps(options)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )
            for rank in range(self.world)
        ]  # fmt: skip
        self.answers()

    def tell(self, line: str) -> list[Any]:
        """Tell all processes the same, and return what they answer."""
        for process in self.processes:
            assert process.stdin is not None  # noqa: S101
            print(line, file=process.stdin, flush=True)
        return self.answers()

    def answers(self) -> list[Any]:
        """Wait for one line of each."""
        lines = [process.stdout.readline() for process in self.processes if process.stdout]
        if not all(lines):
            msg = f"side {self.name!r} ended; run its worker.py by hand to see why"
            raise RuntimeError(msg)
        return [json.loads(line) for line in lines]

    def check(self, folder: Path, expected: dict[str, Any] | None) -> dict[str, Any]:
        """Compare a step's gradients with one process's; return them."""
        found: dict[str, Any] = {}
        for rank, process in enumerate(self.processes):
            assert process.stdin is not None  # noqa: S101
            print(f"gradients {folder}/{rank}", file=process.stdin, flush=True)
        self.answers()
        for rank in range(self.world):
            found |= load_file(folder / str(rank))
        if expected is None:
            return found
        assert found.keys() == expected.keys(), self.name  # noqa: S101
        for name, gradient in found.items():
            error = float((gradient - expected[name]).norm() / expected[name].norm())
            assert error < TOLERANCE, (self.name, name, error)  # noqa: S101
        return found

    def rate(self, steps: int) -> float:
        """Steps per second; of independent processes, of all together."""
        began = time.perf_counter()
        self.tell(f"steps {steps}")
        return steps * (2 if self.name == "ceiling" else 1) / (time.perf_counter() - began)

    def close(self) -> None:
        """End all processes."""
        for process in self.processes:
            process.kill()
            process.wait()


def interval(ratios: list[float]) -> tuple[float, float]:
    """Bootstrap 95% interval of the median."""
    draw = random.Random(0)
    medians = sorted(median(draw.choices(ratios, k=len(ratios))) for _ in range(1000))
    return medians[25], medians[974]


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run all rounds and return one row per side."""
    sides: list[Side] = []
    settings = {**SIZES, "microbatches": options.microbatches}
    try:
        with tempfile.TemporaryDirectory() as folder:
            expected = None
            for name in options.sides:
                sides.append(Side(name, settings))
                expected = sides[-1].check(Path(folder), expected)
                print(f"{name}: gradients compared", file=sys.stderr, flush=True)
        rates: dict[str, list[float]] = {side.name: [] for side in sides}
        for side in sides:
            side.rate(1)
        for number in range(options.rounds):
            for side in sides if number % 2 == 0 else sides[::-1]:
                rates[side.name].append(side.rate(options.steps))
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
        peaks = {side.name: max(side.tell("peak")) for side in sides}
    finally:
        for side in sides:
            side.close()
    rows = []
    for name, found in rates.items():
        row: dict[str, Any] = {
            "side": name,
            "steps_per_s": median(found),
            "peak_bytes": peaks[name],
        }
        for other in ("one", "ceiling", "local:1f1b", "gloo:1f1b"):
            if other in rates and other != name:
                ratios = [a / b for a, b in zip(found, rates[other], strict=True)]
                row[f"over {other}"] = (median(ratios), *interval(ratios))
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: medians of ratios, with their intervals."""
    others = ("one", "ceiling", "local:1f1b", "gloo:1f1b")
    lines = ["|side|steps/s|peak MB|" + "".join(f"over {other}|" for other in others)]
    lines.append("|---|---|---|" + "---|" * len(others))
    for row in rows:
        cells = [row["side"], f"{row['steps_per_s']:.3f}", f"{row['peak_bytes'] / 1e6:.0f}"]
        for other in others:
            found = row.get(f"over {other}")
            cells.append("" if found is None else "{:.3f} ({:.3f} to {:.3f})".format(*found))
        lines.append("|" + "|".join(cells) + "|")
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], folder: Path) -> None:
    """Draw steps per second over those of one process, as PNG and SVG."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    shown = [row for row in rows if "over one" in row]
    colors = {"local": "tab:blue", "gloo": "tab:cyan", "torch": "tab:orange"}
    figure, axes = pyplot.subplots(figsize=(7, 0.32 * len(shown) + 1.2), layout="constrained")
    bars = axes.barh(
        [row["side"] for row in shown],
        [row["over one"][0] for row in shown],
        color=[colors.get(row["side"].partition(":")[0], "gray") for row in shown],
    )
    axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("speed over one process on one core (higher is better)")
    for suffix in ("png", "svg"):
        figure.savefig(folder / f"two_cores.{suffix}", dpi=150)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--microbatches", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=1, help="of each side in each round")
    parser.add_argument("--sides", nargs="*", default=SIDES, help="the first is compared with")
    parser.add_argument("--plot", type=Path, help="folder to draw into")
    parser.add_argument("--json", type=Path, help="file to write all figures to")
    options = parser.parse_args()
    rows = compare(options)
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
