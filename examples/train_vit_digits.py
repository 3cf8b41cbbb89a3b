"""Train a vision transformer on scikit-learn's digits, real 8 x 8 images, two stages in tandem.

In one process, or with one for each rank::

    python examples/train_vit_digits.py
    intandem run --ranks 2 examples/train_vit_digits.py
"""

from __future__ import annotations

import argparse
import os

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import intandem as it

ROWS, WIDTH, NUM_BLOCKS, PATCH = 64, 64, 4, 2
Batch = tuple[Tensor, Tensor]


class ViT(nn.Module):
    """Patches, positions, encoder layers, and a head on the class token."""

    def __init__(self, size: int = 8, num_classes: int = 10) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, PATCH, stride=PATCH)
        self.token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.positions = nn.Parameter(0.02 * torch.randn(1, (size // PATCH) ** 2 + 1, WIDTH))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                WIDTH, 4, 4 * WIDTH, dropout=0.1, batch_first=True, norm_first=True
            )
            for _ in range(NUM_BLOCKS)
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(rows, 1, size, size)`` to logits ``(rows, classes)``."""
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


def read_digits() -> tuple[Batch, Batch]:
    """Images ``(rows, 1, 8, 8)`` in [-1, 1] and classes: to train on, and every fifth held out."""
    images, classes = map(torch.tensor, load_digits(return_X_y=True))
    images = images.view(-1, 1, 8, 8).float() / 8 - 1
    held_out = torch.arange(len(images)) % 5 == 0
    return (images[~held_out], classes[~held_out]), (images[held_out], classes[held_out])


def main() -> None:
    """Train, and print the loss and the held-out accuracy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    steps = parser.parse_args().steps

    torch.manual_seed(0)
    (images, classes), held_out = read_digits()
    draws = torch.Generator().manual_seed(1)  # the same batches on every rank

    def batch() -> Batch:
        rows = torch.randint(len(images), (ROWS,), generator=draws)
        return images[rows], classes[rows]

    pipe = it.Pipeline(
        ViT(),
        example=batch(),
        loss=lambda logits, part: F.cross_entropy(logits, part[1]),
        ranks=None if "WORLD_SIZE" in os.environ else 2,
        microbatches=8,
    )
    optimizer = torch.optim.AdamW(pipe.parameters(), lr=1e-3)
    speed = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        loss = pipe.step(batch())
        optimizer.step()
        optimizer.zero_grad()
        speed.step()
        if step % 40 == 0 or step == steps - 1:
            report(f"step {step:4d}  loss {loss:.3f}")
    logits = pipe.predict(held_out)
    if logits is not None:  # it is where the last stage is
        right = (logits.argmax(1) == held_out[1]).float().mean()
        print(f"held-out accuracy {right:.1%} of {len(logits)} images", flush=True)


def report(line: str) -> None:
    """Print on rank 0."""
    if os.environ.get("RANK", "0") == "0":
        print(line, flush=True)


if __name__ == "__main__":
    main()
