"""Shapes that the values of a batch decide: a recording holds while they are the same."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

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


class Sized(nn.Module):
    """Divides by a size that a number in the batch has given."""

    def __init__(self, how):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.how = how
        self.double()

    def forward(self, x, sizes):
        for layer in self.layers:
            x = layer(x)
        most = sizes.max()
        if self.how == "slice":
            return x.sum() / x[:, :most].shape[1]
        if self.how == "keyword":
            return x.sum() / len(torch.arange(end=most))
        if self.how == "packed":
            packed = pack_padded_sequence(x[..., None], sizes, True, enforce_sorted=False)
            return x.sum() / len(packed.batch_sizes) / len(packed.data)
        return x.sum() / x.new_zeros(2, most).shape[1]


@pytest.mark.parametrize("how", ["slice", "keyword", "packed", "method"])
def test_another_size_is_another_recording(how):
    """A size that a tensor gives is part of what a recording is for."""
    torch.manual_seed(0)
    model = Sized(how)
    plain = copy.deepcopy(model)
    x = torch.ones(2, 4, dtype=torch.float64)
    batches = [{"x": x, "sizes": torch.tensor(sizes)} for sizes in ([2, 1], [3, 1], [3, 1])]
    with it.Pipeline(model, example=batches[0], loss=loss, ranks=2, microbatches=1) as pipe:
        for batch in batches:
            expected = float(plain(**batch).detach())
            assert float(pipe.step(batch)) == pytest.approx(expected, rel=1e-12)
        assert pipe.num_recordings == 2


def test_an_activation_may_be_sliced_by_a_number_of_the_batch():
    """What is sliced does not decide the shape."""
    graph = it.capture(
        Sized("slice"), {"x": torch.ones(2, 4).double(), "sizes": torch.ones(2).long()}
    )
    assert [guard.outcome for guard in graph.guards] == [1]
