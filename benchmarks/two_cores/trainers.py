"""One process, and intandem's pipelines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.ours import check_shares_memory, cut_before
from two_cores.task import Trainer, language_loss, sgd

if TYPE_CHECKING:
    from two_cores.task import Task


def one_process(task: Task) -> Trainer:
    """One micro-batch after the other."""
    optimizer = sgd(task.model.parameters())

    def backward() -> None:
        for part in task.ids.chunk(task.microbatches):
            (language_loss(task.model(part), part) / task.microbatches).backward()

    def step() -> None:
        backward()
        optimizer.step()
        optimizer.zero_grad()

    return Trainer(lambda: task.gradients_after(backward), step)


def intandem(task: Task, schedule: str, kind: str) -> Trainer:
    """Two ranks: threads of this process, or this process's rank of two."""
    import torch.distributed as dist

    import intandem as it

    pipe = it.Pipeline(
        task.model,
        example=task.ids,
        loss=language_loss,
        ranks=2 if kind.startswith("local") else None,
        microbatches=task.microbatches,
        schedule=schedule,
        options=it.Options(
            threads_per_rank=1, open_blocks=True, shared_memory=kind.startswith("shared")
        ),
    )
    if kind.startswith("shared"):
        check_shares_memory(pipe)
    # An optimizer made by the pipeline steps each thread's own parameters: no barrier. Processes
    # have optimizers of their own anyway.
    optimizer = sgd(pipe.parameters()) if kind != "local" else pipe.optimizer(sgd)

    def step() -> None:
        pipe.step(task.ids)
        optimizer.step()
        optimizer.zero_grad()
        if kind in {"shared-barrier", "gloo-barrier"}:
            dist.barrier()

    def finish() -> None:
        list(pipe.parameters())  # reading them waits for steps that are under way

    def backward() -> None:
        pipe.step(task.ids)
        finish()

    later = " ".join(cut_before(pipe))
    return Trainer(lambda: task.gradients_after(backward), step, finish, later)
