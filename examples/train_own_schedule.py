"""Train a GPT by a schedule that is written down here, action by action.

``2F0`` is the forward of stage 2 on micro-batch 0, ``I`` its backward for inputs, ``W`` that for
weights, ``B`` both. A rank does its row in order; what it needs from others is found, sent and
verified for you::

    python examples/train_own_schedule.py
    intandem run --ranks 2 examples/train_own_schedule.py
"""

from __future__ import annotations

import argparse
import os

import torch
from gpt import GPT
from train_gpt import batch_of, loss_fn, read_text

import intandem as it
from intandem.ir import parse_schedule
from intandem.views.text import timeline_text

BY_HAND = """\
intandem schedule 1
name: by-hand
placement: 0 1
microbatches: 6
rank 0: 0F0 0F1 0F2 0I0 0F3 0I1 0F4 0I2 0F5 0I3 0W0 0I4 0W1 0I5 0W2 0W3 0W4 0W5
rank 1: 1F0 1I0 1F1 1I1 1F2 1I2 1F3 1I3 1F4 1I4 1F5 1I5 1W0 1W1 1W2 1W3 1W4 1W5
"""
"""Weight gradients wait until there is nothing else to do. Placement: the rank of each stage."""
ROWS, SEQ = 12, 64


def show(schedule: it.Schedule) -> None:
    """Say what it takes where F, I and W of a stage are a second each, and draw it."""
    found = it.simulate(schedule, it.CostModel.uniform(schedule.num_stages))
    print(f"{schedule.name}: {found.makespan_s:g} s, bubble ratio {found.bubble_ratio:.3f}")
    print(timeline_text(found), flush=True)


def main() -> None:
    """Verify, show and simulate; train; show what was measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    steps = parser.parse_args().steps
    is_first = os.environ.get("RANK", "0") == "0"

    schedule = parse_schedule(BY_HAND)
    it.verify(schedule)  # raises with every finding: a missing action, a deadlock, ...
    if is_first:
        show(it.build_schedule("1f1b", num_ranks=2, num_microbatches=6))
        show(schedule)

    torch.manual_seed(0)
    torch.set_num_threads(1)
    text = read_text()
    pipe = it.Pipeline(
        GPT(seq=SEQ),
        example=batch_of(text, 0, ROWS, SEQ),
        loss=loss_fn,
        ranks=None if "WORLD_SIZE" in os.environ else 2,
        schedule=schedule,
    )
    optimizer = torch.optim.AdamW(pipe.parameters(), lr=1e-3)
    for step in range(steps):
        loss = pipe.step(batch_of(text, step, ROWS, SEQ))
        optimizer.step()
        optimizer.zero_grad()
        if is_first and (step % 10 == 0 or step == steps - 1):
            print(f"step {step:4d}  loss {loss:.3f}", flush=True)
    measured = pipe.timeline()
    if is_first:
        print(f"measured bubble ratio {measured.bubble_ratio:.3f}")
        print(timeline_text(measured), flush=True)


if __name__ == "__main__":
    main()
