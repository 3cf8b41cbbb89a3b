"""What each rank runs: a small training script in which one rank does as it is told.

script.py FOLDER FAULT PHASE CULPRIT RANKS HANG_S     (FOLDER tells whose processes these are)

At step 3 the culprit writes the time, and does the fault: in the forward or backward of its own
block, in its optimizer, while it writes a checkpoint, or after the last step, where the others
still exchange a timeline. Every other rank writes when it had which error. Where ranks are threads,
the caller is the only other one.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import intandem as it

if TYPE_CHECKING:
    from collections.abc import Callable

FOLDER, FAULT, PHASE = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
CULPRIT, NUM_RANKS, HANG_S = int(sys.argv[4]), int(sys.argv[5]), float(sys.argv[6])
STEP, NUM_STEPS = 3, 5
RANK = int(os.environ.get("RANK", "-1"))
"""-1: all ranks are threads of this process."""

state = {"step": -1, "done": False}


def fault_if(phase: str) -> None:
    """Do the fault, once, if this is its time."""
    if phase != PHASE or state["done"] or state["step"] != STEP:
        return
    state["done"] = True
    (FOLDER / "fault").write_text(str(time.monotonic_ns()))
    match FAULT:
        case "raise":
            msg = "boom"
            raise ValueError(msg)
        case "os._exit(0)":
            os._exit(0)
        case "hang":
            threading.Event().wait()
        case name:
            os.kill(os.getpid(), getattr(signal, name))
            threading.Event().wait()


class FaultyGradient(torch.autograd.Function):
    """Identity whose backward may fail."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        """Return the same."""
        del ctx
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        """Return the same, or fail."""
        del ctx
        fault_if("backward")
        return gradient


class Block(nn.Module):
    """A stage; the culprit's may fail."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.linear, self.is_culprit = nn.Linear(16, 16), rank == CULPRIT

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run, or fail."""
        if not self.is_culprit:
            return self.linear(x)
        fault_if("forward")
        return FaultyGradient.apply(self.linear(x))


class FaultySGD(torch.optim.SGD):
    """May fail."""

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Step, or fail."""
        fault_if("optimizer")
        super().step(closure)


class FaultyDisk:
    """Passes on what is asked of a disk; the first thing may fail."""

    def __init__(self, disk: object) -> None:
        self._disk = disk

    def __getattr__(self, name: str) -> object:
        """Pass on, or fail."""
        if name.startswith("write"):
            fault_if("checkpoint")
        return getattr(self._disk, name)


def pipeline(batch: dict[str, torch.Tensor]) -> it.Pipeline:
    """One stage per rank."""
    torch.manual_seed(0)
    return it.Pipeline(
        nn.Sequential(*(Block(rank) for rank in range(NUM_RANKS))),
        example=batch,
        loss=lambda output, batch: nn.functional.mse_loss(output, batch["target"]),
        ranks=NUM_RANKS,
        microbatches=2 * NUM_RANKS,
        stages=[str(rank) for rank in range(1, NUM_RANKS)],
        options=it.Options(hang_s=HANG_S, threads_per_rank=1),
    )


def train() -> None:
    """Train a few steps, save after each, and end with an exchange."""
    torch.manual_seed(1)
    batch = {"input": torch.randn(24, 16), "target": torch.randn(24, 16)}
    numbers = iter(range(NUM_RANKS)) if RANK < 0 else iter([RANK])

    def optimizer_of(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        kind = FaultySGD if next(numbers) == CULPRIT else torch.optim.SGD
        return kind(parameters, lr=0.01)

    with pipeline(batch) as pipe:
        if RANK == CULPRIT:
            pipe._checkpoints.disk = FaultyDisk(pipe._checkpoints.disk)  # type: ignore[assignment]
        optimizer = pipe.optimizer(optimizer_of)
        for step in range(NUM_STEPS):
            time.sleep(0.1)  # ranks know each other's processes within a beat of joining
            pipe.step(batch).item()
            optimizer.step()
            optimizer.zero_grad()
            pipe.save(FOLDER / f"step-{step}", optimizer=optimizer)
            state["step"] = step + 1
        state["step"] = STEP if RANK == CULPRIT else NUM_STEPS
        fault_if("shutdown")
        pipe.timeline()


def main() -> None:
    """Train, and write down how it ended."""
    try:
        train()
    except BaseException as error:
        told = {"ns": time.monotonic_ns(), "error": f"{type(error).__name__}: {error}"}
        (FOLDER / f"told-{RANK}.json").write_text(json.dumps(told))
        raise


if __name__ == "__main__":
    main()
