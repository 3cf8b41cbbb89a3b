"""B against I and W: seconds and bytes, of Transformer blocks of several widths.

    python benchmarks/split/run.py --json found.json --plot benchmarks/split  # two minutes
    python benchmarks/split/run.py --rounds 5 --width 32 256                  # a look

Three ways to compute one backward of two blocks, one after the other in every round, on one thread:
`plain`, one `backward()` of autograd that adds to `.grad`; `intandem`, I and then W; `torch`, the
I and W of `torch.distributed.pipelining`. Model, inputs and the gradient that arrives are the same;
gradients are compared before anything is timed. The forward is not timed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from common.results import Results, finish, parser_of
from common.rounds import Progress, turns
from split.report import figures, table
from split.ways import WIDTHS, Bench, Sides

if TYPE_CHECKING:
    import argparse

SECONDS_PER_WIDTH = 20.0
"""Rounds end then, whatever their number."""


def measure_width(
    width: int, rounds: int, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Return seconds of all rounds and peak bytes of every way."""
    bench = Bench(width, device, dtype)
    errors = bench.check()
    assert max(errors.values()) < (1e-5 if dtype is torch.float32 else 5e-2), errors  # noqa: S101
    sides: dict[str, list[Sides]] = {name: [] for name in bench.ways}
    began_s, complete = time.perf_counter(), 0
    for turn in turns(list(bench.ways), rounds):
        if turn.round > complete:
            complete = turn.round
            if time.perf_counter() - began_s > SECONDS_PER_WIDTH:
                break
        sides[turn.side].append(bench.ways[turn.side](*bench.forward()))
    row: dict[str, Any] = {"width": width, "tokens": bench.x[..., 0].numel(), "errors": errors}
    for name, way in bench.ways.items():
        row[name] = {
            "first_s": [side.first_s for side in sides[name]],
            "second_s": [side.second_s for side in sides[name]],
            "peak_bytes": bench.peak_bytes(way),
        }
    return row


def measure(options: argparse.Namespace) -> Results:
    """Measure every width."""
    torch.set_num_threads(1)
    progress = Progress(len(options.width), "widths")
    rows = []
    for width in options.width:
        rows.append(measure_width(width, options.rounds))
        progress.advance()
    return {"rows": rows}


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--width", type=int, nargs="*", default=list(WIDTHS), choices=list(WIDTHS))
    parser.add_argument("--rounds", type=int, default=60, help="at most; a width takes 20 s")
    parser.add_argument("--quick", action="store_true", help="two widths, five rounds")
    options = parser.parse_args()
    if options.quick:
        options.width, options.rounds = [32, 256], 5
    finish(options, lambda: measure(options), table, figures)


if __name__ == "__main__":
    main()
