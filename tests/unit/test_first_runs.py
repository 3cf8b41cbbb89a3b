"""Models whose forward sets something up when it first runs, or anew in each run."""

import pytest
import torch
from torch import nn

import intandem as it
from intandem.errors import CaptureError


def square(output, batch):
    del batch
    return output.square().mean()


class Layers(nn.Module):
    """Four layers; ``before`` is called with the module before each."""

    def __init__(self, before):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        self.before = before
        self.depth = None
        self.is_ready = False
        self.double()

    def forward(self, x):
        self.depth = 1 if self.depth is None or self.depth == 5 else self.depth
        for layer in self.layers:
            x = layer(x) * self.before(self)
        return x


def counts_layers(model):
    model.depth += 1
    return model.depth


def installs_hooks(model):
    if not model.is_ready:
        model.is_ready = True
        for layer in model.layers:
            layer.register_forward_hook(lambda *_: None)
    return 1.0


@pytest.mark.parametrize("before", [counts_layers, installs_hooks])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_what_the_next_run_finds_as_it_leaves_it_may_be_set(before, ranks):
    """The second recording begins with what the first has left, and is the same."""
    torch.manual_seed(0)
    x = torch.randn(6, 4, dtype=torch.float64)
    found = it.check(Layers(before), x, square, ranks=ranks, microbatches=3)
    assert found.equal, found.worst()


def test_the_pipeline_records_once_after_that():
    """What is set up is part of what a recording is for, so it must be there from the first."""
    model, x = Layers(installs_hooks), torch.randn(6, 4, dtype=torch.float64)
    with it.Pipeline(model, example=x, loss=square, ranks=2, microbatches=3) as pipe:
        pipe.step(x)
        pipe.step(x)
        assert pipe.num_recordings == 1


def another_first_run(model):
    first, model.is_ready = not model.is_ready, True
    return 2.0 if first else 1.0


def different_each_run(model):
    model.depth += 1
    model.is_ready = (model.is_ready or 0) + 1
    return 1.0


@pytest.mark.parametrize("before", [another_first_run, different_each_run])
def test_a_first_run_that_computes_something_else_is_refused(before):
    """One recording cannot be both; the attributes are put back."""
    model, x = Layers(before), torch.randn(6, 4, dtype=torch.float64)
    with pytest.raises(CaptureError, match=r"forward sets \w+ between blocks"):
        it.Pipeline(model, example=x, loss=square, ranks=2, microbatches=3)
    assert (model.depth, model.is_ready) == (None, False)
