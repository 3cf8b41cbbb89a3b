"""Loss functions that do not do, kinds of loss that are mixed, and the number a step returns."""

import copy
import json
import math
import pickle
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import intandem as it
from intandem.errors import ActionError, LossError
from intandem.runtime.loss_report import LossReport, StepLoss
from intandem.runtime.losses import LossTerm, loss_term
from intandem.runtime.tally import LossTally

X, Y = torch.randn(4, 6), torch.randn(4, 6)


def model():
    return nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))


def test_a_loss_that_takes_no_batch():
    """``loss=nn.MSELoss()`` with a pair: what it was given is shown, and what to write."""
    message = (
        "loss(output, batch) raised AttributeError: 'tuple' object has no attribute 'size'; "
        "output is float32 (2, 6), and batch, all of the micro-batch, is (float32 (2, 6), float32 "
        "(2, 6)); take from it what is needed: loss=lambda output, batch: F.mse_loss(output, "
        "batch[1])"
    )
    with pytest.raises(LossError, match=f"^{re.escape(message)}$") as caught:
        it.Pipeline(model(), example=(X, Y), loss=nn.MSELoss(), ranks=2, microbatches=2)
    assert isinstance(caught.value.__cause__, AttributeError)


def test_what_a_loss_was_given():
    """Dictionaries show keys, other things their types; what is ours is passed on."""
    batch = {"x": X, "rest": [1, {"deep": (1,)}]}
    said = re.escape("batch, all of the micro-batch, is {'x': float32 (4, 6), 'rest': [int, dict]}")
    with pytest.raises(LossError, match=said + r".*output, batch\['rest'\]\)$"):
        loss_term(X, batch, lambda _, b: b["y"])
    with pytest.raises(LossError, match=r"is float32 \(4, 6\)$"):
        loss_term(X, X, lambda _, b: b["y"])

    def ours(output, batch):
        raise LossError(str(len(batch)))

    with pytest.raises(LossError, match=r"^4$"):
        loss_term(X, X, ours)


class Optional(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = model()

    def forward(self, x, y=None):
        x = self.blocks(x)
        return x if y is None else F.mse_loss(x, y)


def test_more_items_than_forward_takes_and_no_loss():
    """It is the loss that is missing, not an argument of forward that is too many."""
    message = (
        "no loss: the batch has 2 items, and forward of Sequential takes 1; if the others are for "
        "the loss, give it: Pipeline(..., loss=lambda output, batch: F.mse_loss(output, batch[1]))"
    )
    with pytest.raises(LossError, match=f"^{re.escape(message)}$"):
        it.Pipeline(model(), example=(X, Y), ranks=2)
    with it.Pipeline(Optional(), example=(X, Y), ranks=2, microbatches=2) as pipe:
        assert pipe.step((X, Y)) > 0


def term(count=None):
    return LossTerm(torch.tensor(2.0), count)


@pytest.mark.parametrize(("first", "then"), [(None, 3.0), (3.0, None)])
def test_kinds_are_not_mixed(first, then):
    """A LossSum among scalars, or the reverse, is refused: their weights do not go together."""
    found, before = ("LossSum", "scalar") if then else ("scalar", "LossSum")
    tally = LossTally([0.5, 0.5])
    tally.add(0, term(first))
    with pytest.raises(LossError, match=rf"of micro-batch 1 is a {found}, .* is a {before}; ret"):
        tally.add(1, term(then))
    with pytest.raises(LossError, match=rf"of micro-batch 0 is a {found}, "):
        LossTally([1.0], is_sum=first is not None).add(0, term(then))


def test_a_later_batch_of_another_kind():
    """Where the example's loss was a scalar, a LossSum would lose its count: refused."""

    def loss(output, batch):
        squares = (output - batch[1]) ** 2
        return it.LossSum(squares.sum(), 24) if batch[0].sum() > 1e6 else squares.mean()

    with it.Pipeline(model(), example=(X, Y), loss=loss, ranks=2, microbatches=2) as pipe:
        pipe.step((X, Y))
        pipe.evaluate((X + 1e6, Y))
        with pytest.raises(ActionError, match="the loss of micro-batch 0 is a LossSum") as caught:
            pipe.step((X + 1e6, Y))
    assert isinstance(caught.value.__cause__, LossError)


def test_a_step_loss_is_a_float():
    """It adds, rounds, averages and travels as the number it is."""
    loss = StepLoss(LossReport(1.25, (1.0, 1.5), 1.0))
    assert isinstance(loss, float)
    assert sum([loss, loss]) == 2.5
    assert (round(loss, 1), abs(-loss), loss * 2, 1 / loss) == (1.2, 1.25, 2.5, 0.8)
    assert json.dumps({"loss": loss}) == '{"loss": 1.25}'
    assert np.mean([loss, loss]) == 1.25
    assert torch.tensor([loss]).tolist() == [1.25]
    assert math.isfinite(loss)
    assert (str(loss), f"{loss:.1f}", f"{loss}", repr(loss)) == (
        "1.25", "1.2", "1.25", "StepLoss(1.25)",
    )  # fmt: skip
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert other == loss
        assert other.microbatches == (1.0, 1.5)
