"""One GPU: what the runtime adds, what splitting costs, memory, and gradients of several ranks.

    python benchmarks/gpu/run.py --json found.json --plot benchmarks/gpu  # some minutes
    python benchmarks/gpu/run.py --quick                                  # a look
    python benchmarks/gpu/run.py --quick --device cpu                     # tries the code

Without a GPU, it says so and ends, unless it is told to use the CPU.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from common.results import Results, finish, parser_of
from common.rounds import Progress
from gpu.parts import FULL, QUICK, gradients, memory, one_stage
from gpu.report import figures, table
from split.run import measure_width

if TYPE_CHECKING:
    import argparse

DTYPES = ("float32", "bfloat16")
RANKS = (1, 2, 4)
SCHEDULES = ("gpipe", "1f1b", "zb-h1")
GRADIENT_SIZE = QUICK[0]
"""Small: float64 is slow on many GPUs, and what is looked at does not depend on the size."""


def measure(options: argparse.Namespace) -> Results:
    """Measure every part."""
    device, sizes = options.device, QUICK if options.quick else FULL
    widths, rounds = ((32, 64), 3) if options.quick else ((32, 64, 128, 256, 512, 1024), 60)
    torch.set_num_threads(1)
    progress = Progress(4, "parts")
    found: Results = {"device": _name(device)}
    found["one_stage"] = [one_stage(size, device, d) for size in sizes for d in DTYPES]
    progress.advance()
    found["split"] = [
        {"dtype": d} | measure_width(width, rounds, device, getattr(torch, d))
        for d in DTYPES
        for width in widths
    ]
    progress.advance()
    found["memory"] = [
        memory(sizes[-1], device, ranks, name) for ranks in RANKS for name in SCHEDULES
    ]
    progress.advance()
    found["gradients"] = [
        gradients(GRADIENT_SIZE, device, d, ranks, name)
        for d in ("float64", "bfloat16")
        for ranks in RANKS
        for name in SCHEDULES
    ]
    progress.advance()
    return found


def _name(device: str) -> str:
    return torch.cuda.get_device_name() if torch.device(device).type == "cuda" else device


def main() -> None:
    """Measure and print, or say that there is no GPU."""
    parser = parser_of(__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small models, few rounds")
    options = parser.parse_args()
    needs_cuda = torch.device(options.device).type == "cuda" and not options.read
    if needs_cuda and not torch.cuda.is_available():
        print("skipped: there is no CUDA device (--device cpu tries the code without one)")
        return
    finish(options, lambda: measure(options), table, figures)


if __name__ == "__main__":
    main()
