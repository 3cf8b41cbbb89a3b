"""Fewer micro-batches than replicas: some last stages have nothing to tell."""

import pytest
import torch
from processes import run_ranks
from torch import nn
from torch.nn import functional as F

import intandem as it


def losses(schedule, replicas):
    """A whole batch, then one of a single row, trained on, evaluated and predicted."""
    torch.manual_seed(0)
    batch, row = torch.randn(8, 4), torch.randn(1, 4)
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    plain = [F.mse_loss(model(x), x).item() for x in (batch, row, row)]
    with it.Pipeline(
        model, example=batch, loss=F.mse_loss, microbatches=4, schedule=schedule, replicas=replicas
    ) as pipe:
        found = [float(pipe.step(batch)), float(pipe.step(row)), float(pipe.evaluate(row))]
        pipe.predict(row)
    return [abs(ours - theirs) for ours, theirs in zip(found, plain, strict=True)]


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("schedule", "replicas"), [("chimera", 1), ("1f1b", 2)])
def test_one_row(schedule, replicas, tmp_path):
    """Every process knows the loss, and none waits for a rank without micro-batches."""
    outcomes = run_ranks(losses, 2, tmp_path, schedule, replicas)
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    assert all(error < 1e-6 for outcome in outcomes for error in outcome.value)
