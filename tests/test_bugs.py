"""What was once wrong; each test failed before its fix."""

import pytest
import torch
from torch import nn

import intandem as it
from harness import TOLERANCE, in_tandem, relative_error
from models import SAMPLES


@pytest.mark.parametrize("name", ["batch_norm", "batch_norm_cumulative"])
def test_recomputed_batch_norm_can_run_its_backward(name):
    """Putting buffers back after recomputing is no write that autograd complains of."""
    assert it.check(*SAMPLES[name](), ranks=2, recompute="all", microbatches=3).equal


def test_attention_with_biased_keys_is_recognised():
    """The arguments of ``multi_head_attention_forward`` are read by their right positions."""
    attention = nn.MultiheadAttention(6, 2, dropout=0.5, add_bias_kv=True, batch_first=True)
    model = nn.Sequential(nn.Linear(6, 6), Attends(attention), nn.Linear(6, 6)).double()
    batch = (torch.randn(4, 3, 6).double(), torch.randn(4, 3, 6).double())
    assert it.check(model, batch, nn_mse, ranks=3, microbatches=2).equal


class Attends(nn.Module):
    """Self-attention of one argument."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x):
        return self.attention(x, x, x)[0]


def nn_mse(output, batch):
    return nn.functional.mse_loss(output, batch[1])


def test_capture_leaves_buffers_that_a_block_replaces():
    """A block may register a new tensor in place of its buffer; capture puts the old one back."""
    model, batch, _ = SAMPLES["replaced_buffers"]()
    before = [block.mean for block in model]
    it.capture(model, batch[0])
    assert all(block.mean is buffer for block, buffer in zip(model, before, strict=True))
    assert not any(buffer.any() for buffer in before)


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("name", ["checkpointed_inside", "checkpointed_inside_reentrant"])
def test_a_block_that_recomputes_itself_draws_the_same_again(name, ranks):
    """Checkpointing inside a block with dropout changes no gradient."""
    plainly, recomputing = SAMPLES["not_checkpointed_inside"](), SAMPLES[name]()
    expected = in_tandem(plainly, ranks=1, microbatches=3)
    found = in_tandem(recomputing, ranks=ranks, microbatches=3)
    assert relative_error(found.gradients, expected.gradients) <= TOLERANCE


def without_data(model, blocks):
    """Parameters of ``blocks`` are those of other ranks: freed."""
    for block in blocks:
        for name, parameter in list(block.named_parameters()):
            setattr(block, name, nn.Parameter(parameter.detach().to("meta")))
    return model


def test_new_shapes_once_parameters_are_freed():
    """Recording without other ranks' parameters sees the same calls, whatever the rows."""
    model, batch, _ = SAMPLES["fan_out"]()
    expected = [call.name for call in it.capture(model, batch[0]).calls]
    found = it.capture(without_data(model, model.blocks[2:]), batch[0][:3])
    assert [call.name for call in found.calls] == expected
    assert found.values[-1].shape == (3, 6)


def test_writes_without_data_are_recorded_as_with_data():
    """What was made with data, and is written to where parameters are freed, is made without."""
    model, batch, _ = SAMPLES["in_place_glue"]()
    model.blocks[0].requires_grad_(requires_grad=False)
    expected = it.capture(model, batch[0])
    without_data(model, model.blocks[1:])
    found = it.capture(model, batch[0])
    assert found.values == expected.values
    assert [c.renewed for c in found.calls] == [c.renewed for c in expected.calls]
    assert any(call.renewed for call in found.calls)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_padded_transformer_encoder_can_be_evaluated():
    """Evaluation does not pack padded rows into nested tensors between stages."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = Padded(nn.TransformerEncoder(layer, 3)).double()
    x, hidden = torch.randn(4, 5, 8).double(), torch.zeros(4, 5, dtype=torch.bool)
    hidden[1::2, 3:] = True
    batch = {"x": x, "hidden": hidden}
    with it.Pipeline(model, example=batch, loss=kept_mean, ranks=2, microbatches=2) as pipe:
        found = pipe.evaluate(batch)
    with torch.no_grad():
        expected = kept_mean(model.eval()(**batch), batch)
    assert found == pytest.approx(float(expected), rel=1e-12)


class Padded(nn.Module):
    """An encoder of torch's own, with a padding mask."""

    def __init__(self, encoder):
        super().__init__()
        self.into = nn.Linear(8, 8)
        self.encoder = encoder

    def forward(self, x, hidden):
        return self.encoder(self.into(x), src_key_padding_mask=hidden)


def kept_mean(output, batch):
    return (output.mean(-1) * ~batch["hidden"]).sum(1).mean()
