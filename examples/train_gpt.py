"""Train a GPT on Python's own sources, two stages in tandem.

The same script runs in one process, and with a process for each rank::

    python examples/train_gpt.py
    intandem run --ranks 2 examples/train_gpt.py
    torchrun --nproc-per-node 2 examples/train_gpt.py
"""

from __future__ import annotations

import argparse
import os
import sysconfig
from pathlib import Path

import torch
from gpt import GPT
from torch import Tensor
from torch.nn import functional as F

import intandem as it

ROWS, SEQ = 16, 128
Batch = tuple[Tensor, Tensor]


def read_text() -> Tensor:
    """Bytes of the standard library's modules, ``(bytes,)``."""
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return torch.tensor(bytearray(b"".join(path.read_bytes() for path in sources)))


def batch_of(text: Tensor, step: int, rows: int = ROWS, seq: int = SEQ) -> Batch:
    """Inputs and targets of a step, ``(rows, seq)`` each: the same ones on every rank."""
    generator = torch.Generator().manual_seed(step)
    starts = torch.randint(len(text) - seq, (rows, 1), generator=generator)
    windows = text[starts + torch.arange(seq + 1)].long()
    return windows[:, :-1], windows[:, 1:]


def loss_fn(logits: Tensor, batch: Batch) -> Tensor:
    """Nats per byte."""
    return F.cross_entropy(logits.flatten(0, 1), batch[1].flatten())


def main() -> None:
    """Train, and print the loss on rank 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--schedule", default="1f1b")
    options = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(1)
    text = read_text()
    pipe = it.Pipeline(
        GPT(seq=SEQ),
        example=batch_of(text, 0),
        loss=loss_fn,
        ranks=None if "WORLD_SIZE" in os.environ else 2,
        schedule=options.schedule,
        microbatches=8,
    )
    optimizer = torch.optim.AdamW(pipe.parameters(), lr=1e-3)
    for step in range(options.steps):
        loss = pipe.step(batch_of(text, step))
        pipe.clip_grad_norm_(1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0 and os.environ.get("RANK", "0") == "0":
            print(f"step {step:4d}  loss {loss:.3f}", flush=True)


if __name__ == "__main__":
    main()
