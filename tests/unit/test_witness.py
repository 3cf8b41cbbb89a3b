"""What one process computes, where it has to look twice."""

import torch
from torch import nn

from intandem.equality.witness import Splitting, one_process


class CountsItsCalls(nn.Module):
    """Divides by the count of labels; keeps one buffer that autograd saves, and updates others."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.register_buffer("scale", torch.tensor(2.0, dtype=torch.float64))
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64), persistent=False)

    def loss_function(self, losses, num_items_in_batch):
        """A sum, divided."""
        return losses.sum() / num_items_in_batch

    def forward(self, x, labels, num_items_in_batch=None):
        """Has a loss of its own."""
        self.calls += 1
        self.mean = self.mean * 0.5 + x.mean()
        losses = self.weight * x * self.scale + labels
        return {"loss": self.loss_function(losses, num_items_in_batch)}


def test_witness_runs_each_microbatch_once_as_far_as_buffers_tell():
    """Running twice to see what the count does is seen neither by buffers nor by autograd."""
    model, x = CountsItsCalls(), torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    batch = {"x": x, "labels": torch.ones(2, 3, dtype=torch.long)}
    numbers = one_process(model, batch, None, Splitting(2))
    assert numbers.buffers["calls"] == 2
    assert numbers.buffers["mean"] == x[0].mean() * 0.5 + x[1].mean()
    torch.testing.assert_close(numbers.gradients["weight"], x.sum(0) * 2 / 6, rtol=1e-15, atol=0)
