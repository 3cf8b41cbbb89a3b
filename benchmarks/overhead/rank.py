"""One process of what is measured: a plain loop, all ranks as threads, or one rank of several.

    python rank.py plain|local|shared|gloo|torch SCHEDULE NUM_RANKS NUM_MICROBATCHES

Orders: ``gradients`` runs a step and answers with the gradients that this process has, by name;
``steps N`` runs N steps and answers with the processor seconds that this process took.
Stages are one tiny linear block with a tanh, so that hardly anything is computed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from common.ours import check_shares_memory
from common.workers import obey
from torch import nn

import intandem as it

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

WIDTH = 16
ROWS = 2


def model_of(num_stages: int) -> nn.Module:
    """One small block for every stage."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(num_stages))
    )


class Side(NamedTuple):
    """What a process does.

    Attributes:
        step: of training, without an update.
        parameters: whose gradients this process has, by their names in the whole model.
    """

    step: Callable[[], object]
    parameters: Mapping[str, nn.Parameter]


def plain(order: it.Schedule, batch: Tensor) -> Side:
    """Return the same forwards and backwards, one after the other, no pipeline."""
    model, count = model_of(order.placement.num_stages), order.num_microbatches
    parts, share = batch.chunk(count), torch.tensor(1 / count)

    def step() -> None:
        for part in parts:
            F.mse_loss(model(part), part).backward(share)

    return Side(step, dict(model.named_parameters()))


def pipeline(order: it.Schedule, batch: Tensor, kind: str) -> Side:
    """Return a pipeline: of all ranks as threads, or of one of several processes."""
    model = model_of(order.placement.num_stages)
    pipe = it.Pipeline(
        model,
        example=batch,
        loss=F.mse_loss,
        ranks=order.num_ranks if kind == "local" else None,
        microbatches=order.num_microbatches,
        schedule=order,
        options=it.Options(threads_per_rank=1, shared_memory=kind == "shared"),
    )
    if kind == "shared":
        check_shares_memory(pipe)
    return Side(lambda: pipe.step(batch), dict(model.named_parameters()))


def theirs(order: it.Schedule, batch: Tensor) -> Side:
    """Return `torch.distributed.pipelining`, one rank of several processes, 1F1B."""
    import torch.distributed as dist
    from torch.distributed import pipelining

    dist.init_process_group("gloo")
    rank, num_ranks = dist.get_rank(), order.num_ranks
    block = model_of(num_ranks)[rank]
    stage = pipelining.PipelineStage(block, rank, num_ranks, torch.device("cpu"))
    runner = pipelining.Schedule1F1B(stage, order.num_microbatches, loss_fn=F.mse_loss)
    args = (batch,) if rank == 0 else ()
    ends = {"target": batch, "losses": []} if rank == num_ranks - 1 else {}
    parameters = {f"{rank}.{name}": found for name, found in block.named_parameters()}
    return Side(lambda: runner.step(*args, **ends), parameters)


def prepare() -> dict[str, Callable[[str], object]]:
    """Build; return what can be ordered."""
    kind, schedule, num_ranks, num_microbatches = sys.argv[1:]
    torch.set_num_threads(1)
    order = it.build_schedule(
        schedule, num_ranks=int(num_ranks), num_microbatches=int(num_microbatches)
    )
    torch.manual_seed(1)
    batch = torch.randn(order.num_microbatches * ROWS, WIDTH)
    if kind == "plain":
        side = plain(order, batch)
    elif kind == "torch":
        side = theirs(order, batch)
    else:
        side = pipeline(order, batch, kind)

    def gradients(_: str) -> dict[str, list[float]]:
        side.step()
        named = side.parameters.items()
        return {name: p.grad.flatten().tolist() for name, p in named if p.grad is not None}

    def steps(count: str) -> float:
        began_s = time.process_time()
        for _ in range(int(count)):
            side.step()
        return time.process_time() - began_s

    return {"gradients": gradients, "steps": steps}


if __name__ == "__main__":
    obey(prepare)
