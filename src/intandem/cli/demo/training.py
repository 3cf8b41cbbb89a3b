"""The demo's training: an ordinary loop around ``pipe.step``, and what it is measured against."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

import torch

from intandem.cli.demo.model import plain_step
from intandem.cli.demo.progress import State
from intandem.cli.demo.text import batch_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

    from intandem.cli.demo.model import Batch, Sizes
    from intandem.cli.demo.text import Text
    from intandem.cli.progress import Reporter
    from intandem.pipeline import Pipeline
    from intandem.views.report import Report

LEARNING_RATE, WARM_UP_STEPS = 3e-3, 20
NUM_HELDOUT_POINTS = 10
PROBE_EVERY, FIRST_PROBE = 20, 5


@dataclass(frozen=True, slots=True)
class Budget:
    """When training ends: after ``steps`` where given, else after ``seconds``."""

    steps: int | None
    seconds: float

    def done(self, step: int, elapsed_s: float) -> float:
        """Share of the training that is behind, in [0, 1]."""
        share = elapsed_s / self.seconds if self.steps is None else step / self.steps
        return min(share, 1.0)


@dataclass(frozen=True, slots=True)
class Data:
    """Batches by number, the same ones in every run of a seed."""

    text: Text
    sizes: Sizes
    seed: int

    def training(self, step: int) -> Batch:
        """Batch of a training step."""
        return self._batch(self.text.training, step)

    def heldout(self, index: int) -> Batch:
        """One of the held-out batches."""
        return self._batch(self.text.heldout, index)

    def _batch(self, text: Tensor, step: int) -> Batch:
        rows, seq = self.sizes.rows, self.sizes.seq
        return batch_of(text, rows=rows, seq=seq, seed=self.seed, step=step)


@dataclass(slots=True)
class Log:
    """What happened, step by step.

    Attributes:
        training: (step, loss).
        heldout: (step, loss).
        step_s: seconds of each step, optimizer included.
        bubble_ratios: measured, of each step.
        speed_ratios: seconds of a plain step over those of the step just before it.
        snapshots: what the pipeline reports of the steps that were compared.
        elapsed_s: seconds since training began, everything included.
    """

    training: list[tuple[int, float]] = field(default_factory=list)
    heldout: list[tuple[int, float]] = field(default_factory=list)
    step_s: list[float] = field(default_factory=list)
    bubble_ratios: list[float] = field(default_factory=list)
    speed_ratios: list[float] = field(default_factory=list)
    snapshots: list[Report] = field(default_factory=list)
    elapsed_s: float = 0.0

    def typical(self) -> Report | None:
        """The snapshot of median makespan, which a busy moment of the machine does not bend."""
        known = [(r.measured.makespan_s, r) for r in self.snapshots if r.measured]
        known.sort(key=lambda pair: pair[0])
        return known[len(known) // 2][1] if known else None


@dataclass(frozen=True, slots=True)
class OneProcess:
    """The same model trained by plain PyTorch on one core, a step now and then, to compare."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    num_microbatches: int

    def step_s(self, batch: Batch) -> float:
        """Train one step and return its seconds."""
        start_s = time.perf_counter()
        plain_step(self.model, batch, self.num_microbatches)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - start_s


def adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimizer that both are trained with."""
    return torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)


def train(pipe: Pipeline, one: OneProcess, data: Data, budget: Budget, report: Reporter) -> Log:
    """Train until the budget is spent; at least one step."""
    log, optimizer = Log(), adamw(pipe.parameters())
    started_s, step, done = time.monotonic(), 0, 0.0
    while not step or done < 1.0:
        batch = data.training(step)
        _train_step(pipe, optimizer, batch, log, rate=_learning_rate(step, done))
        if step % PROBE_EVERY == FIRST_PROBE:
            log.snapshots.append(pipe.report_value())
            log.speed_ratios.append(one.step_s(batch) / log.step_s[-1])
        step += 1
        log.elapsed_s = time.monotonic() - started_s
        done = budget.done(step, log.elapsed_s)
        if 1.0 > done >= (len(log.heldout) + 1) / NUM_HELDOUT_POINTS:
            log.heldout.append((step - 1, heldout_loss(pipe, data, num_batches=2)))
        report(_state(log, data, done))
    return log


def heldout_loss(pipe: Pipeline, data: Data, *, num_batches: int) -> float:
    """Mean loss of the first held-out batches, in nats per byte."""
    losses = [float(pipe.evaluate(data.heldout(index))) for index in range(num_batches)]
    return sum(losses) / num_batches


def _train_step(
    pipe: Pipeline, optimizer: torch.optim.Optimizer, batch: Batch, log: Log, *, rate: float
) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    start_s = time.perf_counter()
    loss = float(pipe.step(batch))
    pipe.clip_grad_norm_(1.0)
    optimizer.step()
    optimizer.zero_grad()
    log.step_s.append(time.perf_counter() - start_s)
    log.training.append((len(log.training), loss))
    log.bubble_ratios.append(pipe.timeline().bubble_ratio)


def _learning_rate(step: int, done: float) -> float:
    """Short linear warm-up, then a cosine down to a tenth."""
    warm_up = min(1.0, (step + 1) / WARM_UP_STEPS)
    return LEARNING_RATE * warm_up * (0.55 + 0.45 * math.cos(math.pi * done))


def _state(log: Log, data: Data, done: float) -> State:
    recent_s = median(log.step_s[-20:])
    return State(
        step=len(log.training),
        done=done,
        loss=log.training[-1][1],
        tokens_per_s=data.sizes.tokens / recent_s,
        bubble_ratio=median(log.bubble_ratios[-20:]),
        left_s=log.elapsed_s * (1 - done) / done if len(log.training) > 3 else None,
    )
