"""Parametrized modules that are called more than once."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import intandem as it


class Twice(nn.Module):
    """Two layers, each called twice, whose weights are computed."""

    def __init__(self, wrap):
        super().__init__()
        self.layers = nn.ModuleList(wrap(nn.Linear(4, 4)) for _ in range(2))
        self.double()

    def forward(self, x):
        for layer in [*self.layers, *self.layers]:
            x = torch.tanh(layer(x))
        return x


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.orthogonal])
def test_parametrized_modules_called_twice(wrap):
    """Their parameters get one gradient, one process's."""
    torch.manual_seed(0)
    batch = torch.randn(4, 4, dtype=torch.float64)
    equality = it.check(Twice(wrap), batch, lambda output, batch: output.square().mean(), ranks=2)
    assert equality.equal
