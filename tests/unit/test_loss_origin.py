"""Losses made in the middle of a model: right when forward returns them, refused when not."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import intandem as it
from harness import TOLERANCE, gradients, relative_error
from intandem.errors import ActionError, LossError


class Expert(nn.Module):
    """Leaves a loss of its own in an attribute, and returns it where asked."""

    def __init__(self, width, returns):
        super().__init__()
        self.gate, self.up = nn.Linear(width, 4), nn.Linear(width, width)
        self.returns = returns

    def forward(self, x):
        chosen = self.gate(x).softmax(-1)
        self.aux_loss = chosen.mean(0).square().sum()
        self.load = chosen.detach().mean()
        y = x + self.up(x).tanh() * chosen.amax(-1, keepdim=True)
        return (y, self.aux_loss) if self.returns else y


class Mixture(nn.Module):
    def __init__(self, returns=True):
        super().__init__()
        self.layers = nn.ModuleList(Expert(6, returns) for _ in range(4))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        total = x.new_zeros(())
        for layer in self.layers:
            if layer.returns:
                x, aux = layer(x)
                total = total + aux
            else:
                x = layer(x)
        return self.head(x), total


def task(returns=True):
    torch.manual_seed(4)
    model = Mixture(returns).double()
    return model, (torch.randn(6, 6).double(), torch.randint(3, (6,)))


def balanced(output, batch):
    logits, aux = output
    main = F.cross_entropy(logits, batch[1])
    return {"loss": main + 0.1 * aux, "main": main, "aux": aux}


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_auxiliary_losses_returned_by_blocks(ranks):
    """Summed in forward's glue: one process's gradients, and each part is a metric."""
    model, batch = task()
    twin = copy.deepcopy(model)
    aux = 0.0
    for rows in (slice(0, 3), slice(3, 6)):
        part = (batch[0][rows], batch[1][rows])
        found = balanced(twin(part[0]), part)
        (found["loss"] / 2).backward()
        aux += found["aux"].item() / 2
    with it.Pipeline(model, example=batch, loss=balanced, ranks=ranks, microbatches=2) as pipe:
        loss = pipe.step(batch)
    assert relative_error(gradients(model), gradients(twin)) <= TOLERANCE
    assert loss.metrics["aux"] == pytest.approx(aux, rel=TOLERANCE)
    assert it.check(task()[0], batch, balanced, ranks=ranks, microbatches=3).equal


@pytest.mark.parametrize("ranks", [1, 2])
def test_router_losses_of_mixtral(ranks):
    """``output_router_logits``: the model adds its experts' balance to its own loss."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=3,
        output_router_logits=True, router_aux_loss_coef=0.5,
        experts_implementation="eager",
    )  # fmt: skip
    model = MixtralForCausalLM(config).double()
    ids = torch.randint(40, (4, 8))
    batch = {"input_ids": ids, "labels": ids.clone()}
    batch["labels"][0, :5] = -100
    assert it.check(model, batch, ranks=ranks, microbatches=2).equal


def left_in_an_attribute(model):
    def loss(output, batch):
        aux = sum(layer.aux_loss for layer in model.layers)
        return F.cross_entropy(output[0], batch[1]) + 0.1 * aux

    return loss


def parameters_by_closure(model):
    def loss(output, batch):
        decay = sum(p.square().sum() for p in model.parameters())
        return F.cross_entropy(output[0], batch[1]) + 0.1 * decay

    return loss


def detached_in_an_attribute(model):
    def loss(output, batch):
        main = F.cross_entropy(output[0], batch[1])
        return {"loss": main, "load": model.layers[0].load}

    return loss


def trained_elsewhere(model):
    del model
    critic = nn.Linear(3, 1).double()
    return lambda output, _: critic(output[0]).mean()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (left_in_an_attribute, r"uses layers\.0\.aux_loss, which forward has left in an attribute"),
        (parameters_by_closure, r"depends on parameter \S+, and not through its argument `output`"),
        (trained_elsewhere, r"depends on a tensor of shape .* that needs gradients, and not thro"),
        (detached_in_an_attribute, r"uses layers\.0\.load, which forward has left in an attribute"),
    ],
    ids=["attribute", "closure", "elsewhere", "detached"],
)
def test_what_reaches_a_loss_by_the_back_door(make, message):
    """It is another stage's or micro-batch's: refused when the pipeline is built."""
    model, batch = task(returns=False)
    with pytest.raises(LossError, match=message) as caught:
        it.Pipeline(model, example=batch, loss=make(model), ranks=2, microbatches=2)
    assert "return what the loss needs from forward" in str(caught.value)


def test_the_back_door_found_later():
    """What the loss reaches only after the pipeline was built is found in the step."""
    model, batch = task(returns=False)
    later = []

    def loss(output, batch):
        extra = sum(p.square().sum() for p in later)
        return F.cross_entropy(output[0], batch[1]) + extra

    for recompute in ("none", "all"):
        later.clear()
        with it.Pipeline(
            model, example=batch, loss=loss, ranks=2, microbatches=2, recompute=recompute
        ) as pipe:
            pipe.step(batch)
            later += [model.head.weight]
            with pytest.raises(ActionError, match=r"depends on parameter head\.weight, and not th"):
                pipe.step(batch)


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


def test_what_a_loss_may_use():
    """Constants, buffers, frozen networks and functions with their own autograd are fine."""
    model, batch = task()
    weights = torch.rand(3).double()
    frozen = nn.Linear(3, 3).double().requires_grad_(requires_grad=False)
    model.register_buffer("scale", torch.tensor(2.0).double())
    model.constant = torch.tensor(0.5).double()

    def loss(output, batch):
        logits = frozen(output[0]) * model.scale * model.constant
        main = F.cross_entropy(logits, batch[1], weight=weights, reduction="sum")
        return Squared.apply(main) * 0.01 + output[1].view(()) * output[0].T.mean()

    assert it.check(model, batch, loss, microbatches=2).equal


@pytest.mark.parametrize("ranks", [1, 2])
def test_token_means_with_empty_micro_batches(ranks):
    """Counts differ between micro-batches, and two of them have nothing to count."""

    def loss(output, batch):
        kept = batch[1] >= 0
        total = F.cross_entropy(output[0], batch[1], ignore_index=-1, reduction="sum")
        return it.LossSum(total, kept.sum())

    model, (x, _) = task()
    labels = torch.tensor([-1, 0, 1, 2, 0, -1])
    twin = copy.deepcopy(model)
    F.cross_entropy(twin(x)[0], labels, ignore_index=-1).backward()
    with it.Pipeline(model, example=(x, labels), loss=loss, ranks=ranks, microbatches=6) as pipe:
        pipe.step((x, labels))
        assert relative_error(gradients(model), gradients(twin)) <= TOLERANCE
        model.zero_grad()
        assert pipe.step((x, torch.full((6,), -1))) == 0
        assert all(g is None or not g.any() for g in gradients(model).values())
