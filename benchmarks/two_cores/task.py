"""The same model, weights, batch and optimizer for every side, and how a side is driven."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from gpt import GPT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

LEARNING_RATE = 1e-3
"""Of plain SGD, for every side."""


def language_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Mean cross entropy of the next token."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


class Task:
    """What is trained.

    Args:
        sizes: of the GPT, and ``rows`` of a micro-batch.
        microbatches: M.
    """

    def __init__(self, sizes: dict[str, int], microbatches: int) -> None:
        torch.manual_seed(0)
        self.model = GPT(**{key: sizes[key] for key in sizes if key != "rows"}, tied=False)
        self.microbatches = microbatches
        rows = microbatches * sizes["rows"]
        self.ids = torch.randint(sizes["vocab"], (rows, sizes["seq"]))

    def gradients_after(self, run: Callable[[], object]) -> dict[str, Tensor]:
        """Run a step without its update; return the gradients that it leaves in this process."""
        self.model.zero_grad()
        run()
        named = self.model.named_parameters()
        found = {name: p.grad.clone() for name, p in named if p.grad is not None}
        self.model.zero_grad()
        return found


@dataclass(frozen=True)
class Trainer:
    """How a side is driven.

    Attributes:
        gradients: runs forward and backward of one step, and returns this process's gradients by
            the model's names. May come before ``step``, once.
        step: one step: forward, backward, optimizer, gradients back to none.
        finish: waits for steps that are under way.
        cut: what stages after the first begin with, where the side found that out by itself.
    """

    gradients: Callable[[], dict[str, Tensor]]
    step: Callable[[], object]
    finish: Callable[[], object] = lambda: None
    cut: str = ""


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimizer of every side."""
    return torch.optim.SGD(parameters, lr=LEARNING_RATE)


class Part(nn.Module):
    """A stage cut by hand, as torch and DeepSpeed ask for: blocks ``first`` to ``last``."""

    def __init__(self, model: GPT, first: int, last: int) -> None:
        super().__init__()
        if first == 0:
            self.tokens, self.positions = model.tokens, model.positions
        self.blocks = nn.ModuleList(model.blocks[first:last])
        self.is_first, self.is_last = first == 0, last == len(model.blocks)
        if self.is_last:
            self.norm, self.head = model.norm, model.head

    def forward(self, x: Tensor) -> Tensor:
        """Run the part."""
        if self.is_first:
            x = self.tokens(x) + self.positions(torch.arange(x.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)) if self.is_last else x


def parts_of(model: GPT, cuts: tuple[int, ...]) -> list[Part]:
    """Return all stages; those after the first begin with the blocks in ``cuts``."""
    bounds = [0, *cuts, len(model.blocks)]
    return [Part(model, first, last) for first, last in pairwise(bounds)]
