"""Gradients of a ``LossSum`` where code of the user's takes part in backward."""

import copy

import pytest
import torch
from torch import nn

import intandem as it
from harness import TOLERANCE, gradients, relative_error
from intandem.errors import LossError

OPTIONS = it.Options(threads_per_rank=1)
LIMIT = 0.01


def clamped(gradient):
    return gradient.clamp(-LIMIT, LIMIT)


class Clamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        del ctx
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        del ctx
        return clamped(gradient)


class Layer(nn.Linear):
    """May have its gradient clamped inside a block."""

    clamps = False

    def forward(self, x):
        x = super().forward(x)
        return Clamp.apply(x) if self.clamps else x


class Net(nn.Module):
    def __init__(self, between):
        super().__init__()
        self.layers = nn.ModuleList(Layer(4, 4) for _ in range(4))
        self.between = between

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
            if self.between == "function":
                x = Clamp.apply(x)
            if self.between == "hook" and x.requires_grad:
                x.register_hook(clamped)
        return x


def function_between(model):
    model.between = "function"


def hook_between(model):
    model.between = "hook"


def function_inside(model):
    model.layers[1].clamps = True


def hook_of_module(model):
    model.layers[1].register_full_backward_hook(lambda m, given, out: (clamped(given[0]),))


def hook_of_parameter(model):
    model.layers[0].weight.register_hook(clamped)


def hook_after_accumulation(model):
    def clamp(parameter):
        parameter.grad = clamped(parameter.grad)

    model.layers[0].weight.register_post_accumulate_grad_hook(clamp)


WAYS = [
    function_between,
    function_inside,
    hook_between,
    hook_of_module,
    hook_of_parameter,
    hook_after_accumulation,
]


def token_sum(output, batch):
    mask = batch[1]
    return it.LossSum((output.square().mean(-1) * mask).sum(), mask.sum())


def batch_of(*counts):
    torch.manual_seed(len(counts))
    mask = torch.stack([torch.arange(5) < count for count in counts])
    return torch.randn(len(counts), 5, 4, dtype=torch.float64), mask.double()


def train_plainly(model, batch):
    """Two micro-batches, each loss divided by the whole batch's count."""
    total = batch[1].sum()
    for x, mask in zip(*(leaf.split(2) for leaf in batch), strict=True):
        (token_sum(model(x), (x, mask)).sum / total).backward()


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("way", WAYS)
def test_what_takes_part_in_backward_sees_the_gradients_of_one_process(way, ranks):
    torch.manual_seed(0)
    plain = Net("").double()
    model = copy.deepcopy(plain)
    first = batch_of(5, 4, 1, 0)
    for module in (plain, model):
        way(module)
    with it.Pipeline(
        model, example=first, loss=token_sum, ranks=ranks, microbatches=2, options=OPTIONS
    ) as pipe:
        for batch in (first, batch_of(1, 0, 5, 5), batch_of(0, 0, 5, 1)):
            train_plainly(plain, batch)
            pipe.step(batch)
    assert relative_error(gradients(model), gradients(plain)) <= TOLERANCE


def test_counts_that_depend_on_outputs_are_refused():
    """They are known too late for a hook; without one, a factor does."""

    def loss(output, batch):
        del batch
        large = output.detach().abs() > 0.5
        return it.LossSum((output.square() * large).sum(), large.sum())

    torch.manual_seed(0)
    model, batch = Net("").double(), batch_of(5, 4, 1, 0)
    batch[0][2:] *= 3
    with it.Pipeline(
        model, example=batch, loss=loss, ranks=2, microbatches=2, options=OPTIONS
    ) as pipe:
        pipe.step(batch)
        model.layers[0].weight.register_hook(clamped)
        with pytest.raises(
            LossError, match=r"still to be multiplied by .* Pipeline\(\.\.\., count="
        ):
            pipe.step(batch)
