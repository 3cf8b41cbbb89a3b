"""Train a GPT on sequences of 2,048 bytes of Python's own sources, two stages in tandem.

In one process, or with one for each rank::

    python examples/train_long_gpt.py
    intandem run --ranks 2 examples/train_long_gpt.py
"""

from __future__ import annotations

import argparse
import os

import torch
from gpt import GPT
from train_gpt import batch_of, loss_fn, read_text

import intandem as it

ROWS, SEQ = 4, 2048


def main() -> None:
    """Train, and print the loss on rank 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--recompute", choices=["none", "all"], default="all")
    options = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(1)
    text = read_text()
    pipe = it.Pipeline(
        GPT(seq=SEQ, width=128, num_blocks=4, num_heads=4),
        example=batch_of(text, 0, ROWS, SEQ),
        loss=loss_fn,
        ranks=None if "WORLD_SIZE" in os.environ else 2,
        microbatches=4,
        recompute=options.recompute,  # keeps stages' inputs only: long sequences are memory
    )
    optimizer = torch.optim.AdamW(pipe.parameters(), lr=2e-3)
    for step in range(options.steps):
        loss = pipe.step(batch_of(text, step, ROWS, SEQ))
        pipe.clip_grad_norm_(1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step % 5 == 0 or step == options.steps - 1) and os.environ.get("RANK", "0") == "0":
            print(f"step {step:4d}  loss {loss:.3f}", flush=True)


if __name__ == "__main__":
    main()
