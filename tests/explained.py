"""What tests of refusals and remedies share: a stack of layers that does something odd."""

import itertools
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import intandem as it
from intandem.equality import Splitting, compare, numbers_of, one_process
from intandem.errors import CaptureError

WIDTH = 4
KEPT = {"number": 1.0, "list": []}


def loss(output, batch):
    del batch
    outputs = output.values() if isinstance(output, dict) else output
    outputs = [output] if isinstance(output, torch.Tensor) else outputs
    return sum(tensor.square().mean() for tensor in outputs)


class Stack(nn.Module):
    """Three layers; ``between`` is called after each. Subclasses do something odd in it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(self.layer() for _ in range(3))
        self.register_buffer("kept", torch.zeros(()))
        self.prepare()
        self.double()

    def layer(self):
        return nn.Linear(WIDTH, WIDTH)

    def prepare(self):
        """For subclasses."""

    def forward(self, x):
        for layer in self.layers:
            x = self.between(torch.tanh(layer(x)))
        return x

    def between(self, x):
        return x


class Inside(nn.Module):
    """Calls a function of its own; kept whole with ``blocks=[Inside]``."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


def moved(function):
    """A stack whose ``between`` is a module of its own."""

    class Moved(Stack):
        def prepare(self):
            self.inside = Inside(function)

        def between(self, x):
            return self.inside(x)

    return Moved


def line_of(function):
    """``file:line`` of the line marked ``# here``."""
    code = getattr(function, "__code__", None) or function.forward.__code__
    lines = Path(code.co_filename).read_text().splitlines()
    number = next(n for n in itertools.count(code.co_firstlineno) if "# here" in lines[n - 1])
    return rf"{re.escape(code.co_filename)}:{number}\b"


def data():
    return torch.randn(7, WIDTH, dtype=torch.float64)


def trains(make, *, steps=3, batch=data, **kwargs):
    """Train for some steps, in two and three stages, against one process."""
    for ranks in (2, 3):
        torch.manual_seed(1)
        batches = [batch() for _ in range(steps)]
        plain, ours = make(), make()
        blocks = kwargs.get("blocks", ())
        with it.Pipeline(
            ours, example=batches[0].clone(), loss=loss, ranks=ranks, microbatches=3, **kwargs
        ) as pipe:
            for step, one in enumerate(batches):
                plain.zero_grad()
                ours.zero_grad()
                own = one.clone()
                expected = one_process(plain, one, loss, Splitting(3, blocks=blocks), step=step)
                found = numbers_of(ours, float(pipe.step(own)))
                assert compare(found, expected).equal, step


def refused(make, match, **kwargs):
    """The message, if it is refused with a match of it."""
    with pytest.raises(CaptureError, match=match) as caught:
        it.Pipeline(make(), example=data(), loss=loss, ranks=2, microbatches=3, **kwargs)
    return str(caught.value)


class Cache:
    """Holds what blocks have made."""

    def __init__(self):
        self.seen = []


def with_state(between, prepare=lambda _: None):
    """A stack that carries something from call to call."""
    return type("Carries", (Stack,), {"between": between, "prepare": prepare})
