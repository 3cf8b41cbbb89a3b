"""Activation checkpointing inside the user's model, LoRA adapters, and compiled blocks."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import intandem as it
from harness import TOLERANCE, gradients, relative_error
from intandem.equality import Splitting, one_process

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated.*in v6:FutureWarning")
OPTIONS = it.Options(threads_per_rank=1)


class Block(nn.Module):
    """Checkpoints its own inside where asked."""

    def __init__(self, inside, drop):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 12), nn.Linear(12, 6)
        self.drop, self.inside = nn.Dropout(drop), inside

    def forward(self, x):
        if self.inside is None:
            return x + self.body(x)
        return x + checkpoint(self.body, x, use_reentrant=self.inside)

    def body(self, x):
        return self.down(self.drop(F.gelu(self.up(self.norm(x)))))


class Net(nn.Module):
    def __init__(self, where, reentrant, drop):
        super().__init__()
        inside = reentrant if where == "inside" else None
        self.embed, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.blocks = nn.ModuleList(Block(inside, drop) for _ in range(4))
        self.where, self.reentrant = where, reentrant

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            if self.where == "between":
                x = checkpoint(block, x, use_reentrant=self.reentrant)
            elif self.where == "pairs":
                x = checkpoint(self.twice, block, x, use_reentrant=self.reentrant)
            else:
                x = block(x)
        return self.head(x)

    @staticmethod
    def twice(block, x):
        return F.dropout(block(block(x)), block.drop.p) + x


def loss(output, batch):
    return F.cross_entropy(output, batch[1])


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("drop", [0.0, 0.3])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("where", ["inside", "between", "pairs"])
def test_checkpointing(where, reentrant, drop):
    """Inside blocks, around them, and around glue that draws; both kinds; ours on top of it."""
    torch.manual_seed(0)
    model = Net(where, reentrant, drop).double()
    batch = (torch.randn(7, 6).double(), torch.randint(3, (7,)))
    for ranks, schedule, recompute in (
        (2, "zb-h1", "none"), (2, "1f1b", "all"), (4, "1f1b", "none"),
    ):  # fmt: skip
        found = it.check(
            model, batch, loss, ranks=ranks, schedule=schedule, microbatches=3, recompute=recompute
        )
        assert found.equal, (ranks, schedule, recompute, found.worst())


def llama(layers=2, **more):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, **more,
    )  # fmt: skip
    ids = torch.randint(40, (6, 8))
    batch = {"input_ids": ids, "labels": ids.clone()}
    batch["labels"][0, :4] = -100
    return LlamaForCausalLM(config).double().train(), batch


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_of_transformers(reentrant):
    """``gradient_checkpointing_enable()`` changes no number, with dropout in attention either."""
    model, batch = llama(attention_dropout=0.2, attn_implementation="eager")
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    found = it.check(model, batch, ranks=2, microbatches=3)
    assert found.equal, found.worst()


@pytest.mark.parametrize("recompute", ["none", "all"])
@pytest.mark.parametrize(("ranks", "schedule"), [(1, "1f1b"), (2, "zb-h1")])
def test_lora(ranks, schedule, recompute):
    """``peft``: the base frozen, adapters trained, and their state read with peft's function."""
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    base, batch = llama()
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.1)
    ours = get_peft_model(base, config).double()
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    theirs = copy.deepcopy(ours)
    optimizers = []
    with it.Pipeline(
        ours, example=batch, ranks=ranks, schedule=schedule, microbatches=3, recompute=recompute,
        options=OPTIONS,
    ) as pipe:  # fmt: skip
        for parameters in (pipe.parameters(), theirs.parameters()):
            trained = [p for p in parameters if p.requires_grad]
            optimizers.append(torch.optim.AdamW(trained, lr=0.01))
        for step in range(3):
            found = pipe.step(batch)
            expected = one_process(theirs, batch, None, Splitting(3), step=step)
            assert found == pytest.approx(expected.loss, rel=1e-10)
            assert relative_error(gradients(ours), gradients(theirs)) <= 1e-10
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        whole = pipe.state_dict()
    adapters, expected = (get_peft_model_state_dict(m) for m in (ours, theirs))
    assert len(adapters) == 8
    for name, tensor in expected.items():
        torch.testing.assert_close(adapters[name], tensor, rtol=1e-8, atol=1e-10)
    assert set(get_peft_model_state_dict(ours, whole)) == set(expected)
    names = [n for n, p in ours.named_parameters() if p.requires_grad]
    assert names == [n for n in names if "lora_" in n]
    assert dict(ours.named_parameters()).keys() == dict(pipe.named_parameters()).keys()


def test_adapters_added_after_the_pipeline_was_built():
    """They would be left out: refused, with the order to do it in."""
    from peft import LoraConfig, get_peft_model

    base, batch = llama()
    with it.Pipeline(base, example=batch, ranks=2, microbatches=3) as pipe:
        get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
        with pytest.raises(it.PipelineError, match=r"adapters, heads.*then build the pipeline"):
            pipe.step(batch)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_inductor():
    """Blocks compiled for real; torch's own compiled blocks are the witness."""
    torch.manual_seed(0)
    blocks = [Block(None, 0.0) for _ in range(2)]
    ours = nn.Sequential(*blocks, nn.Linear(6, 3)).double()
    theirs = copy.deepcopy(ours)
    batch = (torch.randn(6, 6).double(), torch.randint(3, (6,)))
    torch._dynamo.reset()
    for block in blocks:
        block.compile()
    with it.Pipeline(ours, example=batch, loss=loss, ranks=2, microbatches=3) as pipe:
        found = pipe.step(batch)
    expected = one_process(theirs, batch, loss, Splitting(3))
    assert found == pytest.approx(expected.loss, rel=TOLERANCE)
    assert relative_error(gradients(ours), gradients(theirs)) <= TOLERANCE
