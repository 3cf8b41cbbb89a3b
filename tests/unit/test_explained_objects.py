"""Tensors hidden in Python objects are refused with their line; the remedies work."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from explained import WIDTH, Cache, Stack, line_of, refused, trains


class Remembers(nn.Linear):
    """Puts what it makes into a cache."""

    def forward(self, x, cache):
        cache.seen.append(super().forward(x))
        return sum(cache.seen)


class Cached(Stack):
    """Passes a cache from block to block."""

    def layer(self):
        return Remembers(WIDTH, WIDTH)

    def forward(self, x):
        cache = Cache()
        for layer in self.layers:
            x = layer(x, cache)  # here
        return x


class Passes(Cached):
    """The same with tensors as arguments."""

    def layer(self):
        return nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        seen = []
        for layer in self.layers:
            seen.append(layer(x))
            x = sum(seen)
        return x


class Fills(nn.Linear):
    """Puts what it makes into a dictionary it was given."""

    def forward(self, x, cache):
        cache["sum"] = cache.get("sum", 0) + super().forward(x)
        return cache["sum"] * 2


class InDictionary(Stack):
    """A dictionary carries a tensor that no block returns."""

    def layer(self):
        return Fills(WIDTH, WIDTH)

    def forward(self, x):
        cache = {}
        for layer in self.layers:
            x = layer(x, cache)  # here
        return x


class Returns(nn.Linear):
    """Returns it instead."""

    def forward(self, x, total):
        total = total + super().forward(x)
        return total * 2, total


class Returned(Stack):
    """What the blocks hand on is returned by them."""

    def layer(self):
        return Returns(WIDTH, WIDTH)

    def forward(self, x):
        total = torch.zeros_like(x)
        for layer in self.layers:
            x, total = layer(x, total)
        return x


class InAttribute(Stack):
    """A list in an attribute holds activations."""

    def prepare(self):
        self.seen = []

    def forward(self, x):
        self.seen.clear()  # here
        for layer in self.layers:
            x = layer(x)
            self.seen.append(x)
        return sum(self.seen)


class InLocal(Stack):
    """The same in a local variable."""

    def forward(self, x):
        seen = []
        for layer in self.layers:
            x = layer(x)
            seen.append(x)
        return sum(seen)


class FreeTensor(Stack):
    """Computes with a tensor that needs gradients and is registered nowhere."""

    def prepare(self):
        self.free = [torch.ones(WIDTH, dtype=torch.float64, requires_grad=True)]

    def between(self, x):
        return x * self.free[0]


HIDDEN = {
    Cached: (r"layers\.\d is given a Cache that holds tensors", Passes),
    InDictionary: ("a tensor made inside a block is used outside it", Returned),
    InAttribute: ("forward sets seen between blocks", InLocal),
}


@pytest.mark.parametrize("model", HIDDEN, ids=lambda m: m.__name__)
def test_tensors_hidden_in_objects(model):
    """Refused with the line; handed on as arguments and results they may be."""
    match, remedy = HIDDEN[model]
    message = refused(model, match)
    assert re.search(line_of(model), message), message
    trains(remedy)


def test_a_tensor_that_is_no_parameter():
    """Refused with the line; a parameter may be used anywhere."""
    message = refused(FreeTensor, "needs gradients and is neither a parameter nor made in this")
    line = FreeTensor.between.__code__.co_firstlineno + 1
    assert f"{Path(__file__).name}:{line};" in message

    class Registered(Stack):
        def prepare(self):
            self.free = nn.Parameter(torch.ones(WIDTH))

        def between(self, x):
            return x * self.free

    trains(Registered)
