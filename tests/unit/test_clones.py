"""A block's copy leads nowhere back to the original, and follows what the user changes there."""

import functools

import torch
from torch import nn

from intandem.runtime.clones import Clone


class Holding(nn.Module):
    """Holds its own parts under several names."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.bound = self.scaled
        self.partial = functools.partial(self.scaled, factor=2)
        self.listed = [self.inner, "word"]
        self.named = {"inner": self.inner, "weight": self.inner.weight}
        self.plain = [1, 2]
        self.scale = 1.0

    def scaled(self, x, factor=1):
        return self.inner(x) * factor * self.scale

    def forward(self, x):
        y = self.bound(x) + self.partial(x) + self.listed[0](x)
        return y + x @ self.named["weight"] + self.named["inner"](x)


def copied():
    """A block, a leaf for its weight, and the copy that uses it."""
    module = Holding()
    leaf = nn.Parameter(module.inner.weight.detach())
    return module, leaf, Clone(module, {id(module.inner.weight): leaf})


def test_every_way_leads_to_the_copy():
    """Bound methods, partial functions, lists and dictionaries use the copy's own parameter."""
    module, leaf, clone = copied()
    x = torch.randn(2, 3)
    assert torch.equal(clone.module(x), module(x))
    clone.module(x).sum().backward()
    assert module.inner.weight.grad is None
    module(x).sum().backward()
    assert torch.equal(leaf.grad, module.inner.weight.grad)
    assert clone.module.inner.bias is module.inner.bias
    assert clone.module.plain is module.plain


def test_follows_the_original():
    """What the user sets afterwards holds for the copy; its own parameter stays its own."""
    module, leaf, clone = copied()
    module.scale = 3.0
    module.added = [module.inner]
    del module.plain
    clone.follow({id(leaf)})
    assert clone.module.scale == 3.0
    assert clone.module.added[0] is clone.module.inner is not module.inner
    assert not hasattr(clone.module, "plain")
    assert clone.module.inner.weight is leaf
    assert clone.module.bound.__self__ is clone.module
    x = torch.randn(2, 3)
    assert torch.equal(clone.module(x), module(x))
