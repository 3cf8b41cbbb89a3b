"""A user's script: the same under python, ``intandem run`` and torchrun.

``train_script.py FAULT TOKEN``: the second stage's block does FAULT once it has been called often.
"""

import os
import signal
import sys
import time

import torch
from torch import nn

import intandem as it

NUM_CALLS = 20


class Block(nn.Module):
    def __init__(self, fault):
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.fault = fault
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        if self.calls == NUM_CALLS and self.fault != "none":
            sys.stdout.write(f"FAULT {time.time()}\n")
            sys.stdout.flush()
            if self.fault == "SIGKILL":
                os.kill(os.getpid(), signal.SIGKILL)
            msg = "boom"
            raise ValueError(msg)
        return self.linear(x)


def main(fault):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), Block("none"), Block(fault), nn.Linear(16, 16))
    batch = {"input": torch.randn(16, 16), "target": torch.randn(16, 16)}
    pipe = it.Pipeline(
        model,
        example=batch,
        loss=lambda output, batch: nn.functional.mse_loss(output, batch["target"]),
        ranks=2,
        microbatches=4,
        stages=["2"],
        options=it.Options(shared_memory="OVER_GLOO" not in os.environ),
    )
    for _ in range(10):
        loss = pipe.step(batch)
    sys.stdout.write(f"loss {float(loss)!r}\n")


if __name__ == "__main__":
    main(sys.argv[1])
