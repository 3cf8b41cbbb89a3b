"""Functions that a recording meets in another form: under transforms, and without data."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import intandem as it
from intandem.errors import CaptureError


class Mapped(nn.Module):
    """Two layers with a function between them that vmap takes apart."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, x):
        x = self.layers[0](x)
        return self.layers[1](torch.vmap(lambda row: row * row.sum())(x))


def test_vmap_between_blocks_is_refused():
    """Where it happens, before the first step."""
    with pytest.raises(CaptureError, match=r"under torch\.vmap .* at .*test_transforms\.py:"):
        it.capture(Mapped(), torch.randn(3, 4))


def test_vmap_inside_a_block():
    """Is that block's business."""
    model = nn.Sequential(Mapped(), nn.Linear(4, 4))
    assert len(it.capture(model, torch.randn(3, 4)).calls) == 2


class Transcribes(nn.Module):
    """Computes a CTC loss."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 5))

    def forward(self, x, labels):
        log_probs = self.layers(x).log_softmax(-1).transpose(0, 1)
        lengths = torch.full((len(x),), x.shape[1]), torch.full((len(x),), labels.shape[1])
        return {"loss": F.ctc_loss(log_probs, labels, *lengths)}


def test_ctc_loss_without_data():
    """A rank that has not all parameters records the same."""
    batch = {"x": torch.randn(3, 7, 4), "labels": torch.randint(1, 5, (3, 2))}
    graphs = [it.capture(model, batch) for model in (Transcribes(), Transcribes().to("meta"))]
    assert graphs[0].values == graphs[1].values
