"""One process of one side of the comparison: builds it, then runs steps whenever it is told to.

    python worker.py SIDE RANK WORLD PORT OPTIONS-AS-JSON

Told by lines on standard input: `gradients FILE` runs a step and saves them, `steps N` runs N
steps, `peak` asks for the largest resident memory. Answers each with one line of JSON.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from gpt import GPT

Step = Callable[[], object]


def language_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Mean cross entropy of the next token."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


class Task:
    """The same model, weights and batch for every side."""

    def __init__(self, options: dict[str, int]) -> None:
        torch.manual_seed(0)
        sizes = {key: options[key] for key in ("vocab", "seq", "width", "num_blocks", "num_heads")}
        self.model = GPT(**sizes, tied=False)
        self.microbatches = options["microbatches"]
        rows = self.microbatches * options["rows"]
        self.ids = torch.randint(options["vocab"], (rows, options["seq"]))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        self.finish: Step = lambda: None
        """Waits for the steps that are under way."""

    def update(self) -> None:
        """What every side does between steps."""
        self.optimizer.step()
        self.optimizer.zero_grad()


def one(task: Task) -> tuple[Step, Step]:
    """One process that runs one micro-batch after the other."""

    def gradients() -> None:
        for part in task.ids.chunk(task.microbatches):
            (language_loss(task.model(part), part) / task.microbatches).backward()

    def step() -> None:
        gradients()
        task.update()

    return gradients, step


def intandem(task: Task, schedule: str, kind: str) -> tuple[Step, Step]:
    """Our pipeline on two ranks: threads, threads whose steps overlap, or processes."""
    import intandem as it

    pipe = it.Pipeline(
        task.model,
        example=task.ids,
        loss=language_loss,
        ranks=None if kind == "gloo" else 2,
        microbatches=task.microbatches,
        schedule=schedule,
        options=it.Options(threads_per_rank=1),
    )
    if kind == "ahead":
        optimizer: torch.optim.Optimizer = pipe.optimizer(lambda p: torch.optim.SGD(p, lr=1e-3))
    else:
        optimizer = torch.optim.SGD(pipe.parameters(), lr=1e-3)
    task.finish = lambda: list(pipe.parameters())

    def gradients() -> None:
        float(pipe.step(task.ids))

    def step() -> None:
        pipe.step(task.ids)
        optimizer.step()
        optimizer.zero_grad()

    return gradients, step


class Part(nn.Module):
    """A stage cut by hand, as `torch.distributed.pipelining` asks for."""

    def __init__(self, model: GPT, first: int, last: int) -> None:
        super().__init__()
        if first == 0:
            self.tokens, self.positions = model.tokens, model.positions
        self.blocks = nn.ModuleList(model.blocks[first:last])
        if last == len(model.blocks):
            self.norm, self.head = model.norm, model.head
        self.first, self.last, self.end = first, last, len(model.blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Run the part."""
        if self.first == 0:
            x = self.tokens(x) + self.positions(torch.arange(x.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)) if self.last == self.end else x

    def names(self) -> dict[str, str]:
        """Name in the whole model by name here."""
        found = {}
        for name, _ in self.named_parameters():
            head, _, rest = name.partition(".")
            if head == "blocks":
                number, _, inner = rest.partition(".")
                found[name] = f"blocks.{int(number) + self.first}.{inner}"
            else:
                found[name] = name
        return found


def peer(task: Task, schedule: str, cuts: list[int], rank: int) -> tuple[Step, Step]:
    """`torch.distributed.pipelining` on two processes; ``cuts`` are where stages begin."""
    import torch.distributed as dist
    from torch.distributed import pipelining
    from torch.distributed.pipelining import schedules as known

    dist.init_process_group("gloo")
    bounds = [0, *cuts, len(task.model.blocks)]
    count = len(bounds) - 1
    own = [rank] if count == 2 else [rank, 3 - rank] if "ZBV" in schedule else [rank, rank + 2]
    parts = [Part(task.model, bounds[s], bounds[s + 1]) for s in own]
    stages = [
        pipelining.PipelineStage(part, s, count, torch.device("cpu"))
        for part, s in zip(parts, own, strict=True)
    ]
    make = getattr(known, schedule)
    given: Any = stages if issubclass(make, known.PipelineScheduleMulti) else stages[0]
    runner = make(given, task.microbatches, loss_fn=language_loss)
    holds_last = count - 1 in own
    optimizer = torch.optim.SGD([p for part in parts for p in part.parameters()], lr=1e-3)

    def gradients() -> None:
        args = (task.ids,) if rank == 0 else ()
        runner.step(*args, target=task.ids, losses=[]) if holds_last else runner.step(*args)

    def step() -> None:
        gradients()
        optimizer.step()
        optimizer.zero_grad()

    return gradients, step


def build(side: str, task: Task, rank: int) -> tuple[Step, Step]:
    """What a side's name stands for: `kind[:schedule[:cut,cut...]]`."""
    kind, _, rest = side.partition(":")
    schedule, _, cuts = rest.partition(":")
    match kind:
        case "one" | "ceiling" | "threads":
            return one(task)
        case "local" | "ahead" | "gloo":
            return intandem(task, schedule, kind)
        case "torch":
            return peer(task, schedule, [int(cut) for cut in cuts.split(",")], rank)
        case _:
            msg = (
                f"{side!r} is no side; expected one, ceiling, threads, local, ahead, gloo or torch"
            )
            raise ValueError(msg)


def main() -> None:
    """Build, then obey."""
    side, rank, world, port, options = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    if side.startswith(("gloo", "torch")):
        os.environ.update(
            RANK=rank, WORLD_SIZE=world, LOCAL_RANK=rank, MASTER_ADDR="127.0.0.1", MASTER_PORT=port
        )
    torch.set_num_threads(2 if side == "threads" else 1)
    task = Task(json.loads(options))
    gradients, step = build(side, task, int(rank))
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        order, _, argument = line.strip().partition(" ")
        answer: object = None
        if order == "gradients":
            gradients()
            found = {n: p.grad for n, p in task.model.named_parameters() if p.grad is not None}
            save_file({name: grad.contiguous() for name, grad in found.items()}, argument)
            task.model.zero_grad()
        elif order == "steps":
            for _ in range(int(argument)):
                step()
            task.finish()
        elif order == "peak":
            answer = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps(answer), file=answers, flush=True)
    answers.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
