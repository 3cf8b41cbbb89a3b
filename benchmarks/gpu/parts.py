"""What is measured on one device. Each function returns rows as JSON has them."""

from __future__ import annotations

import gc
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import torch
import torch.nn.functional as F
from common.rounds import take_turns
from gpt import GPT

import intandem as it
from intandem.equality.comparison import tolerance_of
from intandem.simulator import peak_activations

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


class Size(NamedTuple):
    """Of a GPT, its batch and its measuring.

    Attributes:
        width: of the model; 8 blocks, heads of 64.
        seq: tokens of a row.
        vocab: numbers of tokens.
        rows: of a micro-batch.
        microbatches: M.
        rounds: turns of each side.
        steps: of a turn.
    """

    width: int
    seq: int
    vocab: int
    rows: int
    microbatches: int
    rounds: int
    steps: int


FULL = (Size(256, 256, 8192, 4, 16, 15, 4), Size(1024, 1024, 32768, 4, 16, 15, 2))
"""Small, where the runtime shows, and large, where it must not."""

QUICK = (Size(64, 32, 256, 2, 4, 3, 2),)


class Task:
    """A model, its batch and its loss, on a device."""

    def __init__(self, size: Size, device: str, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        heads = max(1, size.width // 64)
        model = GPT(vocab=size.vocab, seq=size.seq, width=size.width, num_blocks=8, num_heads=heads)
        self.model: nn.Module = model.to(device=device, dtype=dtype)
        self.size, self.device = size, device
        shape = (size.rows * size.microbatches, size.seq)
        self.ids = torch.randint(size.vocab, shape).to(device)

    @staticmethod
    def loss(logits: Tensor, ids: Tensor) -> Tensor:
        """Mean cross entropy of the next token."""
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())

    def plain(self) -> None:
        """Forward and backward, one micro-batch after the other."""
        count = self.size.microbatches
        for part in self.ids.chunk(count):
            (self.loss(self.model(part), part) / count).backward()

    def pipeline(self, ranks: int, schedule: str) -> it.Pipeline:
        """Return a pipeline of local ranks, all on this device."""
        return it.Pipeline(
            self.model,
            example=self.ids,
            loss=self.loss,
            ranks=ranks,
            microbatches=self.size.microbatches,
            schedule=schedule,
            split_points=[f"blocks.{8 * rank // ranks}" for rank in range(1, ranks)] or None,
            options=it.Options(device=self.device, threads_per_rank=1),
        )


def wait_for(device: str) -> None:
    """Return when the device has done its work."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def one_stage(size: Size, device: str, dtype: str) -> dict[str, Any]:
    """Seconds per step of a pipeline of one stage and of a plain loop, in turns."""
    sides: dict[str, Callable[[], object]] = {}
    plain, piped = (Task(size, device, DTYPES[dtype]) for _ in range(2))
    pipe = piped.pipeline(1, "1f1b")
    sides["plain"] = plain.plain
    sides["pipeline"] = lambda: pipe.step(piped.ids)

    def step_s(name: str) -> float:
        wait_for(device)
        began_s = time.perf_counter()
        for _ in range(size.steps):
            sides[name]()
        wait_for(device)
        return (time.perf_counter() - began_s) / size.steps

    with pipe:
        for name in sides:
            step_s(name)
        found = take_turns(list(sides), size.rounds, step_s, f"one stage, {size.width}, {dtype}")
    return {"dtype": dtype, **size._asdict(), "step_s": found}


class Allocated:
    """Bytes on a device. On a CPU, resident memory (Linux), which says little: to try the code."""

    def __init__(self, device: str) -> None:
        self.is_cuda = torch.device(device).type == "cuda"

    def now(self) -> int:
        """Bytes that tensors have now."""
        if self.is_cuda:
            torch.cuda.synchronize()
            return torch.cuda.memory_allocated()
        return self._status("VmRSS")

    def forget(self) -> None:
        """Begin to look for the peak anew."""
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5", "ascii")

    def peak(self) -> int:
        """Most bytes that tensors had since then."""
        if self.is_cuda:
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated()
        return self._status("VmHWM")

    def _status(self, key: str) -> int:
        found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"))
        return int(found[1]) * 1024 if found else 0


def stage_bytes(task: Task, num_stages: int) -> list[int]:
    """Return what a forward of each stage keeps for its backward, per micro-batch.

    Measured on the plain model, whose blocks are run a stage at a time; no step is looked at.
    """
    memory, part = Allocated(task.device), task.ids[: task.size.rows]
    model: Any = task.model
    each = 8 // num_stages
    found = []
    x = part
    for stage in range(num_stages):
        before = memory.now()
        if stage == 0:
            x = model.tokens(x) + model.positions(torch.arange(x.shape[1], device=x.device))
        for block in model.blocks[stage * each : (stage + 1) * each]:
            x = block(x)
        if stage == num_stages - 1:
            x = task.loss(model.head(model.norm(x)), part)
        found.append(memory.now() - before)
        x = x.detach().requires_grad_()  # lets go of what was kept
    return found


def _peak_of_step(pipe: it.Pipeline, task: Task, found: Allocated) -> int:
    """Return the most bytes of a step above what was there before.

    A GPU's backward runs on a thread of autograd's, which may let go of a graph only when the next
    forward has begun: then a step has more at once than it needs, by chance, so that the least of
    several is what it needs.
    """
    gc.collect()  # what was measured before would be let go in the step
    before = found.now()
    found.forget()
    float(pipe.step(task.ids))
    return found.peak() - before


def memory(size: Size, device: str, ranks: int, schedule: str) -> dict[str, Any]:
    """Bytes that activations are predicted to take at most, and what a step took at most.

    Gradients exist before the step. ``transient_bytes`` is what a backward of one micro-batch of
    the plain model takes above what its forward kept: predicted peaks do not contain it.
    """
    task, found = Task(size, device, torch.float32), Allocated(device)
    task.plain()  # makes .grad and what the device keeps
    gc.collect()
    per_stage = stage_bytes(task, ranks)
    order = it.build_schedule(schedule, num_ranks=ranks, num_microbatches=size.microbatches)
    counts = peak_activations(order)
    base = found.now()
    found.forget()
    part = task.ids[: size.rows]
    task.loss(task.model(part), part).backward()
    transient = found.peak() - base - sum(per_stage)
    with task.pipeline(ranks, schedule) as pipe:
        float(pipe.step(task.ids))
        measured = min(_peak_of_step(pipe, task, found) for _ in range(5))
    return {
        "schedule": schedule,
        "ranks": ranks,
        **size._asdict(),
        "activation_bytes": per_stage,
        "peak_activations": list(counts),
        "predicted_bytes": sum(n * b for n, b in zip(counts, per_stage, strict=True)),
        "transient_bytes": transient,
        "measured_bytes": measured,
    }


def gradients(size: Size, device: str, dtype: str, ranks: int, schedule: str) -> dict[str, Any]:
    """Compare a step of local ranks on one device with the plain model, in the same precision."""
    task = Task(size, device, DTYPES[dtype])
    found = it.check(
        task.model, task.ids, Task.loss, ranks=ranks, schedule=schedule,
        microbatches=size.microbatches, tolerance=tolerance_of([DTYPES[dtype]]),
    )  # fmt: skip
    return {
        "dtype": dtype,
        "ranks": ranks,
        "schedule": schedule,
        "equal": found.equal,
        "loss_error": found.loss_error,
        "max_gradient_error": found.max_gradient_error,
        "tolerance": found.tolerance,
    }
