"""Shapes that the values of a batch decide: a recording holds while they are the same."""

import copy

import pytest
import torch
from torch import nn

import intandem as it
from intandem.errors import CaptureError


class Selecting(nn.Module):
    """Divides by the number of chosen columns, as Python knows it from a shape."""

    def __init__(self, how):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.how = how
        self.double()

    def forward(self, x, mask):
        for layer in self.layers:
            x = layer(x)
        if self.how == "nonzero":
            return x.sum() / mask.nonzero().shape[0]
        if self.how == "activation":
            return x[x > 0].mean() * (x > 0).nonzero().shape[0]
        return x[:, mask[0]].sum() / mask[mask].shape[0]


def loss(output, batch):
    del batch
    return output


def batch_of(*chosen):
    mask = torch.zeros(2, 4, dtype=torch.bool)
    mask[:, list(chosen)] = True
    return {"x": torch.ones(2, 4, dtype=torch.float64), "mask": mask}


@pytest.mark.parametrize("how", ["nonzero", "mask"])
def test_another_number_of_chosen_elements_is_another_recording(how):
    """The number that Python read from a shape is the batch's, not the example's."""
    torch.manual_seed(0)
    model = Selecting(how)
    plain = copy.deepcopy(model)
    with it.Pipeline(model, example=batch_of(0, 1), loss=loss, ranks=2, microbatches=1) as pipe:
        for batch in (batch_of(0, 1), batch_of(0, 1, 2), batch_of(1, 2)):
            expected = float(plain(**batch).detach())
            assert float(pipe.step(batch)) == pytest.approx(expected, rel=1e-12)
        assert pipe.num_recordings == 2


def test_a_shape_that_an_activation_decides_is_refused():
    """It may differ for every micro-batch."""
    with pytest.raises(CaptureError, match="depends on the value of an activation or parameter"):
        it.Pipeline(
            Selecting("activation"), example=batch_of(0), loss=loss, ranks=2, microbatches=1
        )
