"""Train a CLIP-like pair of towers on scikit-learn's digits and their captions, in tandem.

The contrastive loss compares every image of the batch with every caption of the batch, so it needs
the whole batch at once: ``WholeBatchLoss`` runs all forwards, then the loss, then all backwards.
After training, images that were held out are named by the caption that is nearest.

In one process, or with one for each rank::

    python examples/train_clip_digits.py
    intandem run --ranks 2 examples/train_clip_digits.py
"""

from __future__ import annotations

import argparse
import os

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from train_vit_digits import Batch, ViT, read_digits, report

import intandem as it

ROWS, WIDTH, LENGTH = 64, 64, 24
NAMES = "zero one two three four five six seven eight nine".split()
CAPTIONS = torch.tensor(
    [list(f"the written digit {name}".encode().ljust(LENGTH)) for name in NAMES]
)


class Captions(nn.Module):
    """Characters through encoder layers, to a vector for each caption."""

    def __init__(self) -> None:
        super().__init__()
        self.characters = nn.Embedding(128, WIDTH)
        self.positions = nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True)
            for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        """Map characters ``(rows, LENGTH)`` to ``(rows, WIDTH)``."""
        x = self.characters(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class TwoTowers(nn.Module):
    """Vectors of length one for images and for captions, and how sharply to compare them."""

    def __init__(self) -> None:
        super().__init__()
        self.images = ViT(num_classes=WIDTH)
        self.captions = Captions()
        self.log_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, images: Tensor, captions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map images and captions, row by row, to vectors ``(rows, WIDTH)`` and a scale."""
        seen, read = F.normalize(self.images(images)), F.normalize(self.captions(captions))
        return seen, read, self.log_scale.exp()


def contrastive(output: tuple[Tensor, Tensor, Tensor], batch: dict[str, Tensor]) -> Tensor:
    """Cross-entropy between images and captions of the same digit, both ways."""
    images, captions, scale = output
    likeness = scale * images @ captions.T
    same = (batch["classes"][:, None] == batch["classes"]).float()
    same = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(likeness, same) + F.cross_entropy(likeness.T, same)) / 2


def batch_of(pairs: Batch, rows: Tensor) -> dict[str, Tensor]:
    """Images, their captions, and which digits they are of."""
    images, classes = pairs[0][rows], pairs[1][rows]
    return {"images": images, "captions": CAPTIONS[classes], "classes": classes}


def main() -> None:
    """Train, then name images that were held out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=250)
    steps = parser.parse_args().steps

    torch.manual_seed(0)
    torch.set_num_threads(1)
    trained, held_out = read_digits()
    draws = torch.Generator().manual_seed(1)  # the same batches on every rank
    pipe = it.Pipeline(
        TwoTowers(),
        example=batch_of(trained, torch.arange(ROWS)),
        loss=it.WholeBatchLoss(contrastive),
        ranks=None if "WORLD_SIZE" in os.environ else 2,
        microbatches=8,
    )
    optimizer = torch.optim.AdamW(pipe.parameters(), lr=1e-3)
    for step in range(steps):
        rows = torch.randint(len(trained[0]), (ROWS,), generator=draws)
        loss = pipe.step(batch_of(trained, rows))
        optimizer.step()
        optimizer.zero_grad()
        if step % 25 == 0 or step == steps - 1:
            report(f"step {step:4d}  loss {loss:.3f}")
    captions = CAPTIONS[torch.arange(len(held_out[0])) % 10]
    vectors = pipe.predict({"images": held_out[0], "captions": captions})
    if vectors is not None:  # they are where the last stage is
        images, read, _ = vectors
        right = ((images @ read[:10].T).argmax(1) == held_out[1]).float().mean()
        print(f"held-out images named rightly: {right:.1%} of {len(images)}", flush=True)


if __name__ == "__main__":
    main()
