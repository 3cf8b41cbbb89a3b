"""Hugging Face models on meta: their folders, their initialisers, their losses."""

import pytest
import torch
import transformers
from test_meta import facts, on_meta
from torch import nn

import intandem as it
from harness import TOLERANCE
from intandem.equality import Splitting, compare, numbers_of, one_process
from intandem.pipeline.counting import counting_in
from intandem.runtime.huggingface import COUNT_NAME, Counting

SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
}


def llama(*, tied=True, base=False):
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=1, tie_word_embeddings=tied)
    return (transformers.LlamaModel if base else transformers.LlamaForCausalLM)(config).double()


def language_batch():
    ids = torch.randint(0, 64, (5, 6), generator=torch.Generator().manual_seed(2))
    labels = ids.clone()
    labels[1::2, 3:] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def one_step(model, weights, ranks=2):
    batch = language_batch()
    options = it.Options(threads_per_rank=1)
    with it.Pipeline(
        model, example=batch, ranks=ranks, microbatches=2, weights=weights, options=options
    ) as pipe:
        return float(pipe.step(batch))


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_folder(tmp_path, tied):
    """Sharded, as save_pretrained writes it; the plain model's gradients come out."""
    torch.manual_seed(5)
    plain = llama(tied=tied)
    plain.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    expected = one_process(plain, language_batch(), None, Splitting(2))
    with torch.device("meta"):
        model = llama(tied=tied)
    equality = compare(numbers_of(model, one_step(model, str(tmp_path))), expected)
    assert equality.loss_error <= TOLERANCE
    assert equality.max_gradient_error <= TOLERANCE
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert torch.equal(model.model.rotary_emb.inv_freq, plain.model.rotary_emb.inv_freq)


def test_a_folder_of_the_base_model(tmp_path):
    torch.manual_seed(5)
    base = llama(base=True)
    base.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = llama()
    one_step(model, tmp_path)
    assert torch.equal(model.model.layers[2].mlp.up_proj.weight, base.layers[2].mlp.up_proj.weight)


def test_a_folder_without_the_head_is_told(tmp_path):
    llama(base=True).save_pretrained(tmp_path)
    with torch.device("meta"):
        model = llama(tied=False)
    with pytest.raises(ValueError, match=r"missing lm_head\.weight"):
        one_step(model, tmp_path)


def test_its_own_initialisers():
    with torch.device("meta"):
        model = llama()
    one_step(model, "init")
    weight = model.model.layers[1].mlp.up_proj.weight.detach()
    assert 0.015 < float(weight.std()) < 0.025
    assert torch.equal(model.model.norm.weight, torch.ones(16).double())
    assert torch.equal(model.model.rotary_emb.inv_freq, llama().model.rotary_emb.inv_freq)
    assert model.lm_head.weight is model.model.embed_tokens.weight


class Counted(nn.Module):
    """Its loss is what ``of(sum, mean, count)`` says."""

    def __init__(self, of):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
        self.of = of

    def forward(self, x, num_items_in_batch):
        for layer in self.layers:
            x = layer(x)
        return {"loss": self.of(x.square().sum(), x.mean(), num_items_in_batch)}


@pytest.mark.parametrize(
    ("of", "counting"),
    [
        (lambda total, mean, count: total / count, Counting.DIVIDES),
        (lambda total, mean, count: total / count.to(total.dtype) * 2, Counting.DIVIDES),
        (lambda total, mean, count: total / count + mean, Counting.MIXES),
        (lambda total, mean, count: mean, Counting.IGNORES),
    ],
)
def test_what_a_count_does_is_told_without_data(of, counting):
    """From the calls between the count and the loss."""
    batch = {"x": torch.randn(4, 3), COUNT_NAME: torch.tensor(8)}
    graph = it.capture(on_meta(Counted(of)), batch)
    assert counting_in(graph, graph.output["loss"]) is counting


def test_llama_divides_by_the_count():
    graph = it.capture(on_meta(llama()), {**language_batch(), COUNT_NAME: torch.tensor(8)})
    assert counting_in(graph, graph.output["loss"]) is Counting.DIVIDES


@pytest.mark.parametrize("experts", ["eager", "grouped_mm", "batched_mm"])
def test_experts_are_recorded_without_data(experts):
    """A router's choice decides what is computed inside a block, not what it returns."""
    config = transformers.MixtralConfig(
        **SIZES, num_key_value_heads=1, num_local_experts=4, experts_implementation=experts
    )
    model = transformers.MixtralForCausalLM(config)
    expected = it.capture(model, language_batch())
    assert facts(it.capture(on_meta(model), language_batch())) == facts(expected)
