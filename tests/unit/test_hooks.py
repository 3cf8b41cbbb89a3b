"""Hooks that a recording could not call as one process does are refused."""

import pytest
import torch
from torch import nn

import intandem as it
from intandem.errors import CaptureError

X = torch.randn(6, 4, dtype=torch.float64)


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.two(torch.tanh(self.one(x) * 2))


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.part = nn.Linear(4, 4), Part()

    def forward(self, x):
        return self.part(self.first(x))


def loss(output, batch):
    del batch
    return output.square().mean()


def tripled(module, *gradients):
    del module
    return tuple(gradient * 3 for gradient in gradients[-2 if len(gradients) > 1 else 0])


@pytest.mark.parametrize(
    "register", ["register_full_backward_hook", "register_full_backward_pre_hook"]
)
@pytest.mark.parametrize("name", ["", "part"])
def test_backward_hooks_of_modules_that_are_not_blocks(register, name):
    model = Whole().double()
    getattr(model.get_submodule(name), register)(tripled)
    with pytest.raises(CaptureError, match="has a backward hook and is no block"):
        it.capture(model, X)


def test_backward_hooks_of_modules_kept_whole():
    model = Whole().double()
    model.part.register_full_backward_hook(tripled)
    assert it.check(model, X, loss, ranks=2, blocks=["part"]).equal


@pytest.mark.parametrize("name", ["part", "part.two"])
def test_legacy_backward_hooks(name):
    """What they see depends on the operations that a module happens to end with."""
    model = Whole().double()
    model.get_submodule(name).register_backward_hook(tripled)
    with pytest.raises(CaptureError, match=f"module {name} has a hook of register_backward_hook"):
        it.capture(model, X, blocks=["part"])


class Hooked(nn.Module):
    """Puts a hook on a tensor before or after another reader."""

    def __init__(self, *, late):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.late = late

    def forward(self, x):
        h = torch.tanh(self.layers[0](x))
        if not self.late:
            h.register_hook(lambda gradient: gradient.clamp(-1e-3, 1e-3))
        early = self.layers[1](h)
        if self.late:
            h.register_hook(lambda gradient: gradient.clamp(-1e-3, 1e-3))
        return self.layers[2](early) + h


def test_a_hook_on_a_tensor_that_was_used_before():
    with pytest.raises(CaptureError, match=r"used before, at .*test_hooks.py:\d+"):
        it.capture(Hooked(late=True).double(), X)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_hook_on_a_tensor_just_made(ranks):
    assert it.check(Hooked(late=False).double(), X, loss, ranks=ranks).equal
