"""What a second pass over a parameter takes, where a product cannot be added to ``.grad`` at once.

    python benchmarks/split/second_pass.py      # seconds

Three ways to the gradient of a square matrix, in turns: ``fused`` multiplies into the sum
(float32, ``addmm_``); ``float32`` makes the product and adds it; ``autocast`` makes it in bfloat16
from operands in bfloat16, converts it and adds it, as autograd does. Beside them, what the pass
alone takes of the last.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from common.ratios import paired_ratio
from common.rounds import take_turns
from common.tables import markdown

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = ((64, 256), (256, 256), (1024, 128), (1024, 1024), (4096, 1024))
"""Width of the parameter, and rows of a micro-batch."""

ROUNDS, TURN_S = 15, 0.05


def ways(width: int, rows: int) -> dict[str, Callable[[], object]]:
    """Return what is compared."""
    total = torch.zeros(width, width)
    gradient, x = torch.randn(width, rows), torch.randn(rows, width)
    half_gradient, half_x = gradient.bfloat16(), x.bfloat16()
    product = half_gradient @ half_x
    return {
        "fused": lambda: total.addmm_(gradient, x),
        "float32": lambda: total.add_(gradient @ x),
        "autocast": lambda: total.add_((half_gradient @ half_x).float()),
        "its pass": lambda: total.add_(product.float()),
    }


def timed_s(way: Callable[[], object], num_times: int) -> float:
    """Return the seconds of one time."""
    began_s = time.perf_counter()
    for _ in range(num_times):
        way()
    return (time.perf_counter() - began_s) / num_times


def row(width: int, rows: int) -> list[object]:
    """Measure one width."""
    found = ways(width, rows)
    num_times = {n: max(1, int(TURN_S / max(timed_s(w, 2), 1e-6))) for n, w in found.items()}
    seconds = take_turns(
        list(found), ROUNDS, lambda n: timed_s(found[n], num_times[n]), f"width {width}"
    )
    us = [f"{1e6 * median(seconds[name]):.0f}" for name in found]
    over = paired_ratio(seconds["float32"], seconds["fused"])
    return [width, rows, *us, over, paired_ratio(seconds["its pass"], seconds["autocast"])]


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    header = ["width", "rows", "fused us", "float32 us", "autocast us", "its pass us",
              "float32 / fused", "pass / autocast"]  # fmt: skip
    print(markdown(header, [row(*sizes) for sizes in SIZES]))


if __name__ == "__main__":
    main()
