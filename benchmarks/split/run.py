"""B against I and W: seconds and bytes, of Transformer blocks of several widths.

    python benchmarks/split/run.py [--rounds 30] [--width 256 ...] [--plot benchmarks/split]

Three ways to compute one backward of two blocks, one after the other in every round, on one thread:
`plain`, one `backward()` of autograd that adds to `.grad`; `intandem`, I and then W; `torch`, the
I and W of `torch.distributed.pipelining`. Model, inputs and the gradient that arrives are the same;
gradients are compared before anything is timed. The forward is not timed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.pipelining._backward import (
    stage_backward_input,
    stage_backward_weight,
)
from torch.profiler import ProfilerActivity, profile

from intandem.runtime.weight_gradients import differentiate

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTHS = {32: (4, 64), 64: (2, 128), 128: (2, 128), 256: (2, 128), 512: (1, 128), 1024: (1, 128)}
"""Micro-batch and sequence length by width."""

NUM_BLOCKS = 2
SECONDS_PER_WIDTH = 20.0


class Block(nn.Module):
    """Attention and a feed-forward part, each after a norm and added to what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before_attention, self.before_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, sequence, width) for the same."""
        batch, length, width = x.shape
        parts = self.qkv(self.before_attention(x)).view(batch, length, 3, 4, width // 4)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.before_feed(x))))


@dataclass(frozen=True)
class Sides:
    """Seconds of the two parts of a backward; the second is 0 where there is one part."""

    first_s: float
    second_s: float = 0.0


class Bench:
    """One width: a model, its input, and the gradient of its output."""

    def __init__(self, width: int) -> None:
        torch.manual_seed(0)
        shape = (*WIDTHS[width], width)
        self.model = nn.Sequential(*(Block(width) for _ in range(NUM_BLOCKS)))
        self.x, self.gradient = torch.randn(shape), torch.randn(shape)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return a fresh leaf and what the model makes of it."""
        x = self.x.detach().requires_grad_()
        return x, self.model(x)

    def plain(self, x: Tensor, y: Tensor) -> Sides:
        """One call of autograd."""
        del x
        began = time.perf_counter()
        y.backward(self.gradient)
        return Sides(time.perf_counter() - began)

    def intandem(self, x: Tensor, y: Tensor) -> Sides:
        """I and W as the pipeline runs them."""
        began = time.perf_counter()
        (x.grad,), pending = differentiate([(y, self.gradient)], [x], hooked=False)
        between = time.perf_counter()
        pending.add_up()
        return Sides(between - began, time.perf_counter() - between)

    def torch(self, x: Tensor, y: Tensor) -> Sides:
        """I and W as `torch.distributed.pipelining` runs them."""
        began = time.perf_counter()
        _, groups = stage_backward_input([y], [self.gradient], [x], self.model.parameters())
        between = time.perf_counter()
        stage_backward_weight(self.model.parameters(), groups)
        return Sides(between - began, time.perf_counter() - between)

    @property
    def ways(self) -> dict[str, Callable[[Tensor, Tensor], Sides]]:
        """All, by name."""
        return {"plain": self.plain, "intandem": self.intandem, "torch": self.torch}

    def check(self) -> dict[str, float]:
        """Largest error of a gradient by way, relative to its norm, after two micro-batches."""
        found: dict[str, list[Tensor]] = {}
        for name, way in self.ways.items():
            self.model.zero_grad()
            for _ in range(2):
                way(*self.forward())
            found[name] = [p.grad.clone() for p in self.model.parameters() if p.grad is not None]
        return {
            name: max(
                float((a - b).norm() / b.norm())
                for a, b in zip(gradients, found["plain"], strict=True)
            )
            for name, gradients in found.items()
        }

    def peak_bytes(self, way: Callable[[Tensor, Tensor], Sides]) -> int:
        """Most bytes allocated during a backward, over what there was before its forward."""
        for _ in range(2):  # the first makes .grad
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
                way(*self.forward())
        live = peak = 0
        events = found.profiler.kineto_results.events()  # type: ignore[union-attr]
        for event in sorted(events, key=lambda event: event.start_ns()):
            if event.name() == "[memory]":
                live += event.nbytes()
                peak = max(peak, live)
        return peak


def measure(width: int, rounds: int) -> dict[str, Any]:
    """All figures of one width."""
    bench = Bench(width)
    errors = bench.check()
    assert max(errors.values()) < 1e-5, errors  # noqa: S101  (nothing wrong is timed)
    sides: dict[str, list[Sides]] = defaultdict(list)
    began = time.perf_counter()
    while len(sides["plain"]) < rounds and time.perf_counter() - began < SECONDS_PER_WIDTH:
        for name, way in bench.ways.items():
            sides[name].append(way(*bench.forward()))
    row: dict[str, Any] = {"width": width, "tokens": bench.x[..., 0].numel(), "errors": errors}
    plain = sides["plain"]
    for name, way in bench.ways.items():
        totals = [side.first_s + side.second_s for side in sides[name]]
        row[name] = asdict(
            Sides(
                *(
                    median(c)
                    for c in zip(*((s.first_s, s.second_s) for s in sides[name]), strict=True)
                )
            )
        )
        pairs = zip(totals, plain, strict=True)
        row[name]["ratio"] = median(total / one.first_s for total, one in pairs)
        row[name]["peak_bytes"] = bench.peak_bytes(way)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "|width|tokens|plain B ms|I ms|W ms|(I + W) / B|torch's|peak bytes / B's|torch's|",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        plain, ours, theirs = row["plain"], row["intandem"], row["torch"]
        cells = [
            row["width"], row["tokens"], f"{plain['first_s'] * 1e3:.2f}",
            f"{ours['first_s'] * 1e3:.2f}", f"{ours['second_s'] * 1e3:.2f}",
            f"{ours['ratio']:.3f}", f"{theirs['ratio']:.3f}",
            f"{ours['peak_bytes'] / plain['peak_bytes']:.2f}",
            f"{theirs['peak_bytes'] / plain['peak_bytes']:.2f}",
        ]  # fmt: skip
        lines.append("|" + "|".join(map(str, cells)) + "|")
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], folder: Path) -> None:
    """Draw the ratios, as PNG and SVG."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    places = range(len(rows))
    for offset, name, label in (
        (-0.2, "intandem", "intandem"),
        (0.2, "torch", "torch.distributed.pipelining"),
    ):
        bars = axes.bar(
            [p + offset for p in places], [row[name]["ratio"] for row in rows], 0.38, label=label
        )
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.axhline(1, color="gray", linewidth=0.8)
    axes.set_xticks(places, [str(row["width"]) for row in rows])
    axes.set_xlabel("width of the blocks")
    axes.set_ylabel("(I + W) / plain backward")
    axes.set_title("What splitting a backward costs (lower is better)")
    axes.legend()
    for suffix in ("png", "svg"):
        figure.savefig(folder / f"split.{suffix}", dpi=150)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--width", type=int, nargs="*", default=list(WIDTHS), choices=list(WIDTHS))
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--plot", type=Path, help="folder to draw into")
    parser.add_argument("--json", type=Path, help="file to write all figures to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for width in options.width:
        rows.append(measure(width, options.rounds))
        print(f"width {width} done", flush=True)
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
