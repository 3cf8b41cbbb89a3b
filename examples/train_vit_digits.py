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
from torch import Tensor
from torch.nn import functional as F
from vit import ViT

import intandem as it

ROWS = 64
Batch = tuple[Tensor, Tensor]


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
