"""The demo's model: the example's GPT, found in a checkout or in an installed package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch.nn import functional as F

from intandem.train.examples import load_example

if TYPE_CHECKING:
    from torch import Tensor, nn

Batch = tuple["Tensor", "Tensor"]
"""Inputs and targets, int64, ``(rows, seq)`` each."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of the model and its batches: chosen so that two cores learn something in 90 seconds."""

    width: int = 192
    num_blocks: int = 4
    num_heads: int = 6
    seq: int = 128
    rows: int = 16

    @property
    def tokens(self) -> int:
        """Of a batch."""
        return self.rows * self.seq


def build_gpt(sizes: Sizes, *, tied: bool, seed: int) -> nn.Module:
    """Return the GPT of ``examples/gpt.py``, the same weights for the same seed."""
    torch.manual_seed(seed)
    model = load_example("gpt").GPT(
        seq=sizes.seq,
        width=sizes.width,
        num_blocks=sizes.num_blocks,
        num_heads=sizes.num_heads,
        tied=tied,
    )
    return cast("nn.Module", model)


def loss_fn(logits: Tensor, batch: Batch) -> Tensor:
    """Mean cross entropy in nats per byte, of logits ``(rows, seq, vocab)``."""
    return F.cross_entropy(logits.flatten(0, 1), batch[1].flatten())


def plain_step(model: nn.Module, batch: Batch, num_microbatches: int) -> float:
    """Do what a pipeline's step does with plain PyTorch: the loss; ``.grad`` is added to."""
    total = 0.0
    num_rows = len(batch[0])
    halves = (part.tensor_split(num_microbatches) for part in batch)
    for inputs, targets in zip(*halves, strict=True):
        loss = loss_fn(model(inputs), (inputs, targets)) * (len(inputs) / num_rows)
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total
