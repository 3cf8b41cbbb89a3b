"""A user's script, held against the types of the public surface by the type checker."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import intandem as it


def loss_fn(output: Tensor, batch: tuple[Tensor, Tensor]) -> it.LossSum:
    """Sum and count, so that padding weighs nothing."""
    return it.LossSum((output - batch[1]).square().sum(), batch[1].numel())


def train(model: nn.Module, batch: tuple[Tensor, Tensor]) -> float:
    """The loop of the README."""
    pipe = it.Pipeline(
        model,
        example=batch,
        loss=loss_fn,
        ranks=2,
        schedule="1f1b",
        microbatches=4,
        options=it.Options(seed=1),
    )
    optimizer = torch.optim.AdamW(pipe.parameters(), lr=3e-4)
    loss = pipe.step(batch)
    norm: float = pipe.clip_grad_norm_(1.0)
    optimizer.step()
    value: float = loss.item() + norm + pipe.evaluate(batch)
    timeline: it.Timeline = pipe.timeline()
    return value + timeline.bubble_ratio


def plan() -> float:
    """The pure half."""
    schedule: it.Schedule = it.build_schedule("1f1b", num_ranks=4, num_microbatches=8)
    it.verify(schedule, max_activations=4)
    costs = it.CostModel.uniform(4, forward_s=1.0)
    return it.simulate(schedule, costs).makespan_s
