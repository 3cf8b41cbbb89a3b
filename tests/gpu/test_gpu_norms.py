"""Scales and offsets of layer norms wait for W on a GPU, where they have a kernel of their own.

On a machine without a GPU these run on a pretend one: ``make test-gpu``.
"""

import copy

import pytest
import torch
from torch import nn

from harness import TOLERANCE, CountedCalls, relative_error
from intandem.runtime.weight_gradients import differentiate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: make test-gpu"),
]

KERNEL = torch.ops.aten.native_layer_norm_backward


class Offset(nn.Module):
    """A norm whose scale is added as well, so that it comes with I, and its offset waits."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)

    def forward(self, x):
        return self.norm(x) + self.norm.weight


def without_gradient(module, name):
    module.get_parameter(name).requires_grad_(False)
    return module


# What makes the module, the parameters that wait, and how often W computes the norm's backward.
CASES = {
    "both": (lambda: nn.LayerNorm(4), {"weight", "bias"}, 1),
    "of-two-dimensions": (lambda: nn.LayerNorm((5, 4)), {"weight", "bias"}, 1),
    "without-offset": (lambda: nn.LayerNorm(4, bias=False), {"weight"}, 1),
    "frozen-offset": (lambda: without_gradient(nn.LayerNorm(4), "bias"), {"weight"}, 1),
    "frozen-scale": (lambda: without_gradient(nn.LayerNorm(4), "weight"), set(), 0),
    "no-parameters": (lambda: nn.LayerNorm(4, elementwise_affine=False), set(), 0),
    "scale-used-otherwise": (Offset, {"norm.bias"}, 1),
    "twice": (lambda: nn.Sequential(*[nn.LayerNorm(4)] * 2), {"0.weight", "0.bias"}, 2),
}


def seed_of(output):
    torch.manual_seed(2)
    return torch.randn(output.shape, dtype=output.dtype).to(output.device)


def gradients_of(module):
    return {name: p.grad for name, p in module.named_parameters()}


@pytest.mark.parametrize("at_once", [False, True], ids=["apart", "at-once"])
@pytest.mark.parametrize("case", CASES)
def test_sums(case, at_once):
    """Two micro-batches add up to what autograd finds, of as many kernels; the right ones wait."""
    make, names, num_late = CASES[case]
    torch.manual_seed(1)
    module = make().double().to("cuda")
    x = torch.randn(2, 5, 4, dtype=torch.float64).to("cuda").requires_grad_()
    expected = copy.deepcopy(module)
    for index in range(2):
        output = expected(x)
        (of_x,) = torch.autograd.grad(output, x, seed_of(output), retain_graph=True)
        output.backward(seed_of(output))
        output = module(x)
        with CountedCalls() as during:
            (found,), pending = differentiate([(output, seed_of(output))], [x], at_once=at_once)
        if index == 0:
            grads = gradients_of(module)
            assert {n for n, p in module.named_parameters() if p.requires_grad} >= names
            assert {n for n in names if grads[n] is None} == names
        with CountedCalls() as after:
            pending.add_up()
        assert during.calls[KERNEL] == (2 if case == "twice" else 1)
        assert after.calls[KERNEL] == num_late
        assert relative_error({"x": found}, {"x": of_x}) <= TOLERANCE
    assert relative_error(gradients_of(module), gradients_of(expected)) <= TOLERANCE
