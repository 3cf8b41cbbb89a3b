"""Stages that wait instead of computing, for `torch.distributed.pipelining`. One process per rank.

    RANK=0 WORLD_SIZE=4 ... python sleeping.py

Orders, each answered by every rank:

    links BYTES REST_S  what a message takes between neighbours on the ring that have rested so
                 long, each pair by itself: from each rank to the next, in seconds (of the pair
                 that this rank begins)
    order JSON   the compute order of a multi-stage schedule of torch's, as CSV
    run JSON     steps of it: per step, when its first action began and its last ended, and the
                 seconds of all actions, on a clock that processes of one machine share
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
from common.workers import obey
from torch import Tensor, nn
from torch.distributed import pipelining
from torch.distributed.pipelining import schedules as known

from intandem.rehearsal.waits import Waiter

if TYPE_CHECKING:
    from collections.abc import Callable

IN_A_V = ("ZBVZeroBubble",)
NUM_WARMUP = 2
"""Steps that are not counted, as in `intandem.rehearsal`."""

_NUM_FIRST, _NUM_ROUNDS = 3, 15


class Clock:
    """Waits, and notes when actions began and ended."""

    def __init__(self) -> None:
        self.waiter = Waiter()
        self.forget()

    def forget(self) -> None:
        """Begin a step."""
        self.first_s, self.last_s, self.busy_s = float("inf"), 0.0, 0.0

    def hold(self, seconds: float) -> None:
        """Be busy for so long."""
        start_s = time.perf_counter()
        self.waiter.until(start_s + seconds)
        end_s = time.perf_counter()
        self.first_s, self.last_s = min(self.first_s, start_s), end_s
        self.busy_s += end_s - start_s


class Held(torch.autograd.Function):
    """Hands on its input; its backward takes ``seconds``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, clock: Clock, seconds: float) -> Tensor:
        """Return the same values."""
        ctx.clock, ctx.seconds = clock, seconds
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Wait, and hand the gradient on."""
        ctx.clock.hold(ctx.seconds)
        return gradient, None, None


class Sleeping(nn.Module):
    """A stage: F waits, and so do the way to the input in I and the way to the parameter in W."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.clock, self.seconds = clock, seconds

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        self.clock.hold(self.seconds)
        if not x.requires_grad:  # the batch: its I takes as long as any
            x = x.detach().requires_grad_()
        through = Held.apply(x, self.clock, self.seconds)
        return through + Held.apply(self.weight, self.clock, self.seconds)


class Case(NamedTuple):
    """One schedule with its costs.

    Attributes:
        schedule: torch's name, without "Schedule".
        microbatches: M.
        stage_s: what F, I and W of each stage take each.
        boundary_bytes: of a message.
        steps: that count.
    """

    schedule: str
    microbatches: int
    stage_s: list[float]
    boundary_bytes: int
    steps: int


class Rank:
    """This process."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        dist.init_process_group("gloo")
        self.rank, self.num_ranks = dist.get_rank(), dist.get_world_size()
        self.clock = Clock()

    def links(self, given: str) -> float:
        """Measure pairs of neighbours on the ring, one after another; see ``rehearsal.links``."""
        num_bytes, rest = given.split()
        message, rest_s, found = torch.zeros(int(num_bytes), dtype=torch.uint8), float(rest), 0.0
        for first in range(self.num_ranks):
            dist.barrier()
            second = (first + 1) % self.num_ranks
            if self.rank == first:
                found = self._to_and_fro(message, second, rest_s)
            elif self.rank == second:
                for _ in range(_NUM_FIRST + _NUM_ROUNDS):
                    dist.recv(message, first)
                    self.clock.waiter.until(time.perf_counter() + rest_s)
                    dist.send(message, first)
        return found

    def _to_and_fro(self, message: Tensor, peer: int, rest_s: float) -> float:
        times_s = []
        for _ in range(_NUM_FIRST + _NUM_ROUNDS):
            self.clock.waiter.until(time.perf_counter() + rest_s)
            began_s = time.perf_counter()
            dist.send(message, peer)
            dist.recv(message, peer)
            times_s.append((time.perf_counter() - began_s - rest_s) / 2)
        return max(median(times_s[_NUM_FIRST:]), 0.0)

    def order(self, given: str) -> str:
        """Return torch's own order."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "order.csv"
            self._runner(Case(*json.loads(given)))._dump_csv(str(file), format="compute_only")
            return file.read_text("utf-8")

    def run(self, given: str) -> list[tuple[float, float, float]]:
        """Run steps. Ranks begin each together, after a barrier."""
        case = Case(*json.loads(given))
        runner, count = self._runner(case), len(case.stage_s)
        batch = torch.zeros(case.microbatches, case.boundary_bytes // 4)
        args = (batch,) if self.rank == 0 else ()
        is_last = count - 1 in self._own(case)
        found = []
        for _ in range(NUM_WARMUP + case.steps):
            dist.barrier()
            self.clock.forget()
            runner.step(*args, **({"target": batch, "losses": []} if is_last else {}))
            found.append((self.clock.first_s, self.clock.last_s, self.clock.busy_s))
        return found[NUM_WARMUP:]

    def _own(self, case: Case) -> list[int]:
        count = len(case.stage_s)
        if case.schedule in IN_A_V:
            return [self.rank, count - 1 - self.rank]
        return list(range(self.rank, count, self.num_ranks))

    def _runner(self, case: Case) -> Any:
        count = len(case.stage_s)
        stages = [
            pipelining.PipelineStage(
                Sleeping(self.clock, case.stage_s[stage]), stage, count, torch.device("cpu")
            )
            for stage in self._own(case)
        ]
        make = getattr(known, f"Schedule{case.schedule}")
        given: Any = stages if issubclass(make, known.PipelineScheduleMulti) else stages[0]
        return make(given, case.microbatches, loss_fn=lambda output, _: output.mean())


def prepare() -> dict[str, Callable[[str], object]]:
    """Join the group; return what can be ordered."""
    here = Rank()
    return {"links": here.links, "order": here.order, "run": here.run}


if __name__ == "__main__":
    obey(prepare)
