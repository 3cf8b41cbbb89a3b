"""What saving costs: steps without it, with it, and with it in the background.

    python benchmarks/checkpoint/run.py --json found.json --plot FOLDER    # two minutes
    python benchmarks/checkpoint/run.py --quick                            # a look

A GPT on two ranks that are threads, each stepping its own AdamW. In a turn it is trained a few
steps, and saved after the first of them: not at all, with ``wait=True``, or with ``wait=False``.
The turn ends when its steps are over; a save in the background that is not is waited for after
that, and timed by itself.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import torch
from common.plots import panels
from common.ratios import paired_ratio
from common.results import Results, finish, parser_of
from common.rounds import Progress, turns
from common.tables import markdown
from gpt import GPT
from train_gpt import batch_of, loss_fn, read_text

import intandem as it

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

ROWS, SEQ = 8, 64
SIDES = ("no saving", "wait=True", "wait=False")


class Trained:
    """A pipeline that is trained and saved.

    Args:
        width: of the model.
        folder: to save in.
    """

    def __init__(self, width: int, folder: Path) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(1)
        self._text, self._steps, self._folder = read_text(), iter(range(1_000_000)), folder
        self.pipe = it.Pipeline(
            GPT(seq=SEQ, width=width),
            example=self._batch(0),
            loss=loss_fn,
            ranks=2,
            microbatches=4,
            options=it.Options(threads_per_rank=1),
        )
        self.optimizer = self.pipe.optimizer(lambda p: torch.optim.AdamW(p, lr=1e-4))

    def _batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return batch_of(self._text, step, ROWS, SEQ)

    def turn(self, side: str, num_steps: int) -> dict[str, float]:
        """Train and save; return seconds of the turn, of calling ``save``, of what was left."""
        found = {"save_s": 0.0, "left_s": 0.0}
        began_s = time.perf_counter()
        saved = None
        for index in range(num_steps):
            self.pipe.step(self._batch(next(self._steps)))
            self.optimizer.step()
            self.optimizer.zero_grad()
            if index == 0 and side != SIDES[0]:
                self._settle()  # so that what is timed is the saving
                called_s = time.perf_counter()
                saved = self.pipe.save(
                    self._folder / "c", optimizer=self.optimizer, wait=side == SIDES[1]
                )
                found["save_s"] = time.perf_counter() - called_s
        self._settle()
        ended_s = time.perf_counter()
        if saved is not None:
            path = saved.wait()
            found["left_s"] = time.perf_counter() - ended_s
            found["num_bytes"] = sum(file.stat().st_size for file in path.iterdir())
            shutil.rmtree(path)
        return {"turn_s": ended_s - began_s, **found}

    def _settle(self) -> None:
        """Wait for steps and optimizers."""
        next(self.pipe.parameters())


def measure(options: argparse.Namespace) -> Results:
    """Measure all sides in turns."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        trained = Trained(options.width, Path(folder))
        for side in SIDES:
            trained.turn(side, 2)
        progress = Progress(options.rounds * len(SIDES), "turns")
        for turn in turns(SIDES, options.rounds):
            found[turn.side].append(trained.turn(turn.side, options.steps))
            progress.advance()
        trained.pipe.close()
    return {"width": options.width, "num_steps": options.steps, "sides": found}


def _seconds(results: Results, side: str, what: str) -> list[float]:
    return [turn[what] for turn in results["sides"][side]]


def table(results: Results) -> str:
    """Return Markdown."""
    plain, num_steps = _seconds(results, SIDES[0], "turn_s"), results["num_steps"]

    def rows() -> Iterator[list[object]]:
        for side in SIDES:
            turn_s = _seconds(results, side, "turn_s")
            costs_s = median(a - b for a, b in zip(turn_s, plain, strict=True))
            yield [
                side,
                f"{median(turn_s) / num_steps * 1e3:.0f}",
                "" if side == SIDES[0] else paired_ratio(turn_s, plain),
                "" if side == SIDES[0] else f"{costs_s * 1e3:.0f}",
                f"{median(_seconds(results, side, 'save_s')) * 1e3:.0f}",
                f"{median(_seconds(results, side, 'left_s')) * 1e3:.0f}",
            ]

    num_bytes = results["sides"][SIDES[1]][0]["num_bytes"]
    header = [
        "saving", "ms per step", "over no saving", "ms that a save costs",
        "ms that save() takes", "ms after the turn",
    ]  # fmt: skip
    said = f"width {results['width']}, a save of {num_bytes / 1e6:.0f} MB every {num_steps} steps"
    return f"{said}, {len(plain)} rounds\n\n{markdown(header, rows())}"


def figures(results: Results) -> dict[str, Any]:
    """Draw seconds of all turns."""
    figure, axes = panels(1, 1, width=6, height=3)
    axes[0][0].boxplot([_seconds(results, side, "turn_s") for side in SIDES], tick_labels=SIDES)
    axes[0][0].set(ylabel="seconds", title=f"{results['num_steps']} steps, saved once")
    axes[0][0].set_ylim(bottom=0)
    return {"checkpoint": figure}


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--width", type=int, default=384, help="of the GPT, a multiple of 6")
    parser.add_argument("--steps", type=int, default=6, help="of a turn; one is followed by a save")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--folder", type=Path, help="on the disk that is saved to")
    parser.add_argument("--quick", action="store_true", help="a small model, two rounds")
    options = parser.parse_args()
    if options.quick:
        options.width, options.rounds, options.steps = 48, 2, 3
    finish(options, lambda: measure(options), table, figures)


if __name__ == "__main__":
    main()
