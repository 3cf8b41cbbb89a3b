"""What tests of checkpoints train: a small model with draws, buffers and an optimizer's state."""

import torch
from torch import nn
from torch.nn import functional as F

import intandem as it


def model():
    """BatchNorm's buffers, and draws that depend on the step."""
    torch.manual_seed(0)
    blocks = [
        nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Dropout(0.2), nn.BatchNorm1d(6))
        for _ in range(3)
    ]
    return nn.Sequential(*blocks, nn.Linear(6, 3))


def loss(output, batch):
    return F.cross_entropy(output, batch[1])


def batches(count):
    """The first batches of the run."""
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 6, generator=generator), torch.randint(3, (8,), generator=generator))
        for _ in range(count)
    ]


def pipeline(trained, **kwargs):
    options = kwargs.pop("options", it.Options(threads_per_rank=1))
    return it.Pipeline(
        trained, example=batches(1)[0], loss=loss, microbatches=4, options=options, **kwargs
    )


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.01)


def train(pipe, optimizer, some):
    """Losses of steps on some batches."""
    losses = []
    for batch in some:
        losses.append(float(pipe.step(batch)))
        optimizer.step()
        optimizer.zero_grad()
    return losses


def differing(found, expected):
    """Names of tensors of two states that differ in any bit."""
    assert found.keys() == expected.keys()
    return [name for name in expected if not torch.equal(found[name], expected[name])]
