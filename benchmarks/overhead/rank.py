"""One process of what is measured: a plain loop, all ranks as threads, or one rank of several.

    python rank.py plain|local|shared|gloo|torch SCHEDULE NUM_RANKS NUM_MICROBATCHES

Order: ``steps N`` runs N steps and answers with the processor seconds that this process took.
Stages are one tiny linear block with a tanh, so that hardly anything is computed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from common.ours import check_shares_memory
from common.workers import obey
from torch import nn

import intandem as it

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTH = 16
ROWS = 2


def model_of(num_stages: int) -> nn.Module:
    """One small block for every stage."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(num_stages))
    )


def plain(order: it.Schedule) -> Callable[[], object]:
    """Return a step of the same forwards and backwards, one after the other, no pipeline."""
    model, x = model_of(order.placement.num_stages), torch.randn(ROWS, WIDTH)

    def step() -> None:
        for _ in range(order.num_microbatches):
            F.mse_loss(model(x), x).backward()

    return step


def pipeline(order: it.Schedule, kind: str) -> Callable[[], object]:
    """Return a step of a pipeline: of all ranks as threads, or of one of several processes."""
    batch = torch.randn(order.num_microbatches * ROWS, WIDTH)
    pipe = it.Pipeline(
        model_of(order.placement.num_stages),
        example=batch,
        loss=F.mse_loss,
        ranks=order.num_ranks if kind == "local" else None,
        microbatches=order.num_microbatches,
        schedule=order,
        options=it.Options(threads_per_rank=1, shared_memory=kind == "shared"),
    )
    if kind == "shared":
        check_shares_memory(pipe)
    return lambda: pipe.step(batch)


def theirs(order: it.Schedule) -> Callable[[], object]:
    """Return a step of `torch.distributed.pipelining`, one rank of several processes, 1F1B."""
    import torch.distributed as dist
    from torch.distributed import pipelining

    dist.init_process_group("gloo")
    rank, num_ranks = dist.get_rank(), order.num_ranks
    stage = pipelining.PipelineStage(
        model_of(num_ranks)[rank], rank, num_ranks, torch.device("cpu")
    )
    runner = pipelining.Schedule1F1B(stage, order.num_microbatches, loss_fn=F.mse_loss)
    batch = torch.randn(order.num_microbatches * ROWS, WIDTH)
    args = (batch,) if rank == 0 else ()
    if rank == num_ranks - 1:
        return lambda: runner.step(*args, target=batch, losses=[])
    return lambda: runner.step(*args)


def prepare() -> dict[str, Callable[[str], object]]:
    """Build; return what can be ordered."""
    kind, schedule, num_ranks, num_microbatches = sys.argv[1:]
    torch.set_num_threads(1)
    torch.manual_seed(1)
    order = it.build_schedule(
        schedule, num_ranks=int(num_ranks), num_microbatches=int(num_microbatches)
    )
    if kind == "plain":
        step = plain(order)
    elif kind == "torch":
        step = theirs(order)
    else:
        step = pipeline(order, kind)

    def steps(count: str) -> float:
        began_s = time.process_time()
        for _ in range(int(count)):
            step()
        return time.process_time() - began_s

    return {"steps": steps}


if __name__ == "__main__":
    obey(prepare)
