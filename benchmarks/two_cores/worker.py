"""One process of one side: builds it, then does as it is told.

    python worker.py SIDE MICROBATCHES SIZES-AS-JSON

Orders: ``gradients FILE`` runs a step and saves them, ``steps N`` runs N steps, ``forget`` begins
to look for the peak anew, ``peak`` asks for the largest resident memory since, in bytes.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from common.workers import obey
from two_cores.task import Task
from two_cores.trainers import intandem, one_process

if TYPE_CHECKING:
    from collections.abc import Callable

    from two_cores.task import Trainer


def trainer_of(side: str, task: Task) -> Trainer:
    """Build a side (``sides`` knows names as well, but imports intandem, which peers lack)."""
    kind, _, rest = side.partition(":")
    schedule, _, cuts = rest.partition(":")
    match kind:
        case "one" | "ceiling" | "threads":
            return one_process(task)
        case "torch" | "torch-barrier":
            from two_cores.peers import torch_pipelining

            return torch_pipelining(task, schedule, _numbers(cuts), barrier=kind != "torch")
        case "deepspeed":
            from two_cores.peers import deepspeed_engine

            return deepspeed_engine(task, _numbers(schedule))
        case _:
            return intandem(task, schedule, kind)


def _numbers(cuts: str) -> tuple[int, ...]:
    return tuple(int(cut) for cut in cuts.split(","))


def forget_peak() -> None:
    """Let the peak of resident memory begin anew (Linux, proc(5))."""
    Path("/proc/self/clear_refs").write_text("5", "ascii")


def peak_bytes() -> int:
    """Largest resident memory of this process since then; ``ru_maxrss`` may be the parent's."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"))
    return int(found[1]) * 1024 if found else 0


def prepare() -> dict[str, Callable[[str], object]]:
    """Build; return what can be ordered."""
    side, microbatches, sizes = sys.argv[1:]
    torch.set_num_threads(2 if side == "threads" else 1)
    trainer = trainer_of(side, Task(json.loads(sizes), int(microbatches)))

    def steps(count: str) -> None:
        for _ in range(int(count)):
            trainer.step()
        trainer.finish()

    return {
        "gradients": lambda file: torch.save(trainer.gradients(), file),
        "steps": steps,
        "forget": lambda _: forget_peak(),
        "peak": lambda _: peak_bytes(),
        "cut": lambda _: trainer.cut,
        "threads": lambda _: torch.get_num_threads(),
    }


if __name__ == "__main__":
    obey(prepare)
