"""The same training with other people's pipelines, two processes over Gloo."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from two_cores.task import Trainer, language_loss, parts_of, sgd

if TYPE_CHECKING:
    from torch import Tensor
    from two_cores.task import Task

IN_A_V = ("ZBVZeroBubble", "DualPipeV")
"""torch's schedules in which the first rank has the last stage as well."""


def torch_pipelining(task: Task, schedule: str, cuts: tuple[int, ...], *, barrier: bool) -> Trainer:
    """`torch.distributed.pipelining`, with stages that begin with the blocks in ``cuts``."""
    from torch.distributed import pipelining
    from torch.distributed.pipelining import schedules as known

    dist.init_process_group("gloo")
    rank, parts = dist.get_rank(), parts_of(task.model, cuts)
    count = len(parts)
    own = {2: [rank], 4: [rank, 3 - rank if schedule in IN_A_V else rank + 2]}[count]
    stages = [pipelining.PipelineStage(parts[s], s, count, torch.device("cpu")) for s in own]
    make = getattr(known, f"Schedule{schedule}")
    given: Any = stages if issubclass(make, known.PipelineScheduleMulti) else stages[0]
    runner = make(given, task.microbatches, loss_fn=language_loss)
    optimizer = sgd(p for s in own for p in parts[s].parameters())

    def backward() -> None:
        args = (task.ids,) if rank == 0 else ()
        if count - 1 in own:
            runner.step(*args, target=task.ids, losses=[])
        else:
            runner.step(*args)

    def step() -> None:
        backward()
        optimizer.step()
        optimizer.zero_grad()
        if barrier:
            dist.barrier()

    return Trainer(lambda: task.gradients_after(backward), step)


def deepspeed_engine(task: Task, cuts: tuple[int, ...]) -> Trainer:
    """DeepSpeed's pipeline engine: 1F1B. A layer of its module is a stage here."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    from deepspeed.pipe import PipelineModule

    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    torch.set_num_threads(1)
    names = {id(p): name for name, p in task.model.named_parameters()}
    parts = parts_of(task.model, cuts)
    module = PipelineModule(
        parts, num_stages=len(parts), loss_fn=language_loss, partition_method="uniform",
        activation_checkpoint_interval=0,
    )  # fmt: skip
    optimizer = sgd(module.parameters())
    rows = len(task.ids)
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=optimizer,
        dist_init_required=False,
        config={
            "train_batch_size": rows,
            "train_micro_batch_size_per_gpu": rows // task.microbatches,
            "gradient_accumulation_steps": task.microbatches,
            "gradient_clipping": 0.0,  # it clips at a norm of 1 unless told
            "steps_per_print": 10**9,
        },
    )
    pairs = [(part, part) for part in task.ids.chunk(task.microbatches)]

    def gradients() -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}

        def look(*_: object) -> None:
            for parameter in module.parameters():
                assert parameter.grad is not None  # noqa: S101  (DeepSpeed just made it)
                found[names[id(parameter)]] = parameter.grad.clone()

        handle = optimizer.register_step_pre_hook(look)  # its engine updates and clears at once
        engine.train_batch(iter(pairs))
        handle.remove()
        return found

    return Trainer(gradients, lambda: engine.train_batch(iter(pairs)))
