"""Hugging Face models with a loss of their own, against one plain call on the whole batch."""

import copy

import pytest
import torch

import intandem as it
from intandem.runtime.huggingface import Counting, counting_of

transformers = pytest.importorskip("transformers", reason="needs transformers")

SMALL = {"vocab_size": 48, "max_position_embeddings": 32, "pad_token_id": 0}


def bert():
    """Takes any keyword, and does not look at the count."""
    configuration = transformers.BertConfig(
        **SMALL, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return transformers.BertForMaskedLM(configuration)


def bart():
    """An encoder and a decoder; does not look at the count."""
    configuration = transformers.BartConfig(
        **SMALL, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, dropout=0.0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip
    return transformers.BartForConditionalGeneration(configuration)


def llama():
    """Divides the sum of its losses by the count."""
    configuration = transformers.LlamaConfig(
        **SMALL, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(configuration)


@pytest.mark.parametrize("make", [bert, bart, llama])
@pytest.mark.parametrize("ranks", [1, 2])
def test_gradients_of_a_whole_batch(make, ranks):
    """Whatever the model does with the count, the batch's loss and gradients come out."""
    torch.manual_seed(0)
    model = make().double()
    ids = torch.randint(3, 48, (6, 8))
    labels = ids.clone()
    if make is llama:
        labels[0, 3:] = labels[3, 6:] = -100
    batch = {"input_ids": ids, "labels": labels}
    plain = copy.deepcopy(model)
    plain(**batch, use_cache=False).loss.backward() if make is not bert else plain(
        **batch
    ).loss.backward()

    with it.Pipeline(model, example=batch, ranks=ranks, microbatches=3) as pipe:
        pipe.step(batch)
        logits = pipe.predict({"input_ids": ids}).logits

    total = torch.stack([p.grad.norm() for p in plain.parameters() if p.grad is not None]).norm()
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        if theirs.grad is not None:
            error = (ours.grad - theirs.grad).norm() / max(theirs.grad.norm(), 1e-3 * total)
            assert error <= 1e-12, name
    assert logits.shape == (6, 8, 48)


@pytest.mark.parametrize("make", [bert, llama])
def test_check_agrees(make):
    """The witness finds out by itself what the model does with the count."""
    torch.manual_seed(0)
    ids = torch.randint(3, 48, (5, 8))
    batch = {"input_ids": ids, "labels": ids}

    assert it.check(make().double(), batch, ranks=2, microbatches=3).equal


@pytest.mark.parametrize(
    ("loss", "found"),
    [
        (lambda count: 12.3 / count, Counting.DIVIDES),
        (lambda _: 12.3, Counting.IGNORES),
        (lambda count: 12.3 / count + 0.5, Counting.MIXES),
    ],
)
def test_what_a_model_does_with_the_count(loss, found):
    """Twice the count halves a sum and leaves a mean alone."""
    assert counting_of(loss) is found


class Mixed(torch.nn.Module):
    """A sum over labels divided by the count, and a mean of its own, as experts' balance is."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(48, 8)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(3))
        self.head = torch.nn.Linear(8, 48)

    def loss_function(self, logits, labels, num_items_in_batch=None):
        total = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), reduction="sum", ignore_index=-100
        )
        return total / num_items_in_batch

    def forward(self, input_ids, labels=None, num_items_in_batch=None):
        x = self.embed(input_ids)
        for block in self.blocks:
            x = x + block(x).tanh()
        loss = self.loss_function(self.head(x), labels, num_items_in_batch)
        return {"loss": loss + x.square().mean()}


def test_a_loss_with_both_in_it():
    """The sum is divided by the whole batch's count and the mean is weighed by rows."""
    torch.manual_seed(0)
    model = Mixed().double()
    ids = torch.randint(3, 48, (5, 8))
    labels = ids.clone()
    labels[1, 2:] = -100
    batch = {"input_ids": ids, "labels": labels}
    plain = copy.deepcopy(model)
    plain(**batch, num_items_in_batch=int((labels != -100).sum()))["loss"].backward()

    with it.Pipeline(model, example=batch, ranks=2, microbatches=3) as pipe:
        pipe.step(batch)

    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert (ours.grad - theirs.grad).norm() <= 1e-12 * theirs.grad.norm()
