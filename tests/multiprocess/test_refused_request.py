"""A request that cannot be served is refused on every rank alike, and the script may ask again."""

import torch
from processes import run_ranks
from torch import nn

import intandem as it

X = torch.linspace(-1, 1, 32).reshape(8, 4)


def square(output, batch):
    del batch
    return output.square().mean()


def model():
    torch.manual_seed(0)
    layers = [nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)]
    return nn.Sequential(*layers).double()


def ask_twice():
    """What the first requests were refused for, and the loss of the one after."""
    refused = []
    whole = it.WholeBatchLoss(square)
    batch = X.double()
    for wrong in ({"schedule": "1f1b"}, {"split_points": ["2", "4"]}):
        try:
            it.Pipeline(model(), example=batch, loss=whole, microbatches=4, **wrong)
        except it.PipelineError as error:
            refused.append(str(error))
    with it.Pipeline(model(), example=batch, loss=whole, microbatches=4) as pipe:
        return refused, float(pipe.step(batch))


def test_a_script_may_ask_again_after_a_refusal(tmp_path):
    """The pipeline after two refusals trains, with one process's loss, on both ranks."""
    batch = X.double()
    expected = square(model()(batch), batch).item()
    for outcome in run_ranks(ask_twice, 2, tmp_path):
        assert outcome.code == 0, outcome.output[-3000:]
        refused, loss = outcome.value
        assert "a WholeBatchLoss needs" in refused[0]
        assert "split_points names 2 modules" in refused[1]
        assert abs(loss - expected) <= 1e-12 * expected
