"""Trains two ranks of which rank 0 makes the other wait: ``waiting_script.py slow|sleep``.

``slow``: in the last step every backward of rank 0 takes nearly as long as an action may; rank 1,
which has the other copy of the embedding, waits for it with its own gradients. ``sleep``: a
forward of rank 1 never ends; rank 0 waits for its gradient and prints its process id.
"""

import os
import sys
import threading
import time

import torch
import torch.nn.functional as F
from torch import nn

import intandem as it

FAULT = sys.argv[1]
SLOW_S, HANG_S = 0.4, 0.6
RANK = int(os.environ["RANK"])
NUM_STEPS = 4
state = {"step": -1}  # a recording runs the model as well


class Slow(torch.autograd.Function):
    """Identity whose backward takes a while."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        if state["step"] == NUM_STEPS - 1:  # where it is known how long an action takes
            time.sleep(SLOW_S)
        return gradient


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        if FAULT == "sleep" and RANK == 1 and state["step"] >= 0:
            threading.Event().wait()
        return Slow.apply(self.linear(x)) if FAULT == "slow" and RANK == 0 else self.linear(x)


class Tied(nn.Module):
    """An embedding, two blocks, and a head that has the embedding's weight."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def loss(output, ids):
    return F.cross_entropy(output.flatten(0, 1), ids.flatten())


def main():
    torch.manual_seed(0)
    ids = torch.randint(10, (8, 3))
    hang_s = HANG_S if FAULT == "slow" else float("inf")
    with it.Pipeline(
        Tied(),
        example=ids,
        loss=loss,
        microbatches=4,
        schedule="gpipe",
        stages=["blocks.1"],
        options=it.Options(threads_per_rank=1, hang_s=hang_s),
    ) as pipe:
        if RANK == 0:
            sys.stdout.write(f"PROCESS {os.getpid()}\n")
            sys.stdout.flush()
        for step in range(NUM_STEPS):
            state["step"] = step
            pipe.step(ids)


if __name__ == "__main__":
    main()
