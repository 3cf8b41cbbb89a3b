"""What reaches a block past its arguments is refused; the remedies work."""

import re

import torch
from torch import nn

from explained import WIDTH, Cache, Stack, line_of, refused, trains


class Factor(nn.Linear):
    """Scales by a number of its own."""

    factor = 1.0

    def forward(self, x, factor=None):
        return super().forward(x) * (self.factor if factor is None else factor)


class SetsNumber(Stack):
    """Sets a number on each block before calling it."""

    def layer(self):
        return Factor(WIDTH, WIDTH)

    def forward(self, x):
        for number, layer in enumerate(self.layers):
            layer.factor = float(len(x) + number)
            x = layer(x)  # here
        return x


class PassesNumber(SetsNumber):
    """Passes it instead."""

    def forward(self, x):
        for number, layer in enumerate(self.layers):
            x = layer(x, float(len(x) + number))
        return x


class SetsAfter(SetsNumber):
    """Sets it after the call, for the next step."""

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
            layer.factor = layer.factor + 1
        return x


def test_a_number_set_on_a_block():
    """Refused with the line of the call; as an argument it works."""
    message = refused(
        SetsNumber, r"forward sets layers\.0\.factor, an attribute of a block, before"
    )
    assert re.search(line_of(SetsNumber), message), message
    refused(SetsAfter, r"forward sets layers\.\d\.factor, an attribute of a block, after it was")
    trains(PassesNumber)


class Sharing(nn.Linear):
    """Adds what the block before has left in an object that all of them have."""

    def __init__(self, shared):
        super().__init__(WIDTH, WIDTH)
        self.shared = shared

    def forward(self, x):
        made = torch.tanh(super().forward(x))
        total = made if self.shared.seen is None else made + self.shared.seen  # here
        self.shared.seen = made
        return total


class Shares(Stack):
    """Blocks share an object, which is emptied at each call."""

    def prepare(self):
        shared = Cache()
        shared.seen = None
        self.layers = nn.ModuleList(Sharing(shared) for _ in range(3))

    def forward(self, x):
        self.layers[0].shared.seen = None
        for layer in self.layers:
            x = layer(x)
        return x


class Together(Stack):
    """Those that share, in one module that is kept whole, between others."""

    def prepare(self):
        self.sharing = Shares()

    def forward(self, x):
        return self.layers[2](self.sharing(self.layers[1](self.layers[0](x))))


def test_a_tensor_shared_by_blocks():
    """Refused with the line that reads it; kept whole together they may share."""
    message = refused(Shares, r"a tensor made outside a block reaches add\(\) inside it")
    assert re.search(line_of(Sharing), message), message
    trains(Together, blocks=["sharing"])


class Memo(nn.Linear):
    """Has a table that others make for it on first use."""

    table = None

    def lookup(self):
        if self.table is None:
            self.table = torch.arange(WIDTH, dtype=torch.float64)
        return self.table


class UsesMemo(Stack):
    """Asks blocks for their tables."""

    def layer(self):
        return Memo(WIDTH, WIDTH)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x) + layer.lookup()
        return x


class KeepsMean(UsesMemo):
    """Leaves a mean of activations on a block for the next call."""

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
            layer.table = x.detach().mean()
        return x


def test_tensors_set_on_blocks():
    """What depends on the batch alone may be kept there; activations may not."""
    trains(UsesMemo)
    refused(KeepsMean, r"forward sets layers\.\d\.table, an attribute of a block, after it was")
