"""What Python carries from one call to the next is refused with its line; the remedies work."""

import collections
import functools
import itertools
import random
import re
import time

import pytest
import torch
from torch import nn

from explained import KEPT, WIDTH, Stack, line_of, refused, trains, with_state


def in_attribute(self, x):
    x = x if self.before is None else x + self.before
    self.before = x.detach().mean()  # here
    return x


def in_dictionary(self, x):
    x = x + self.before.get("mean", 0)
    self.before["mean"] = x.detach().mean()  # here
    return x


def in_object(self, x):
    self.before.number += 1  # here
    return x * self.before.number


def in_queue(self, x):
    x = x + sum(self.before)
    self.before.append(x.detach().mean())  # here
    return x


class Plain:
    """Any object."""

    number = 1


def empty(kind):
    def prepare(self):
        self.before = kind()

    return prepare


ATTRIBUTES = {
    in_attribute: lambda: None,
    in_dictionary: dict,
    in_object: Plain,
    in_queue: functools.partial(collections.deque, maxlen=3),
}


class InBuffer(Stack):
    """Carries a mean from call to call in a buffer."""

    def forward(self, x):
        x = super().forward(x) + self.kept
        with torch.no_grad():
            self.kept.copy_(x.mean())
        return x


@pytest.mark.parametrize("between", ATTRIBUTES, ids=lambda f: f.__name__)
def test_attributes_that_forward_changes(between):
    """Refused with the line that sets them; a buffer that is written to may change."""
    make = with_state(between, empty(ATTRIBUTES[between]))
    make.between = between
    message = refused(make, "forward sets before between blocks")
    assert "keep it in a buffer" in message


def test_state_in_a_buffer():
    """The remedy of all of these."""
    trains(InBuffer)


def in_global(self, x):
    KEPT["number"] += 1
    return x * KEPT["number"]  # here


def in_class(self, x):
    type(self).number = getattr(type(self), "number", 0) + 1
    return x * type(self).number  # here


def from_clock(self, x):
    return x * (1 + time.perf_counter())  # here


def from_iterator(self, x):
    return x * next(NUMBERS)  # here


def from_own_generator(self, x):
    return x + torch.rand(x.shape, dtype=x.dtype, generator=GENERATOR)  # here


def from_python(self, x):
    return x * random.random()


NUMBERS = itertools.count(1)
GENERATOR = torch.Generator()


@pytest.mark.parametrize(
    "between",
    [in_global, in_class, from_clock, from_iterator, from_own_generator],
    ids=lambda f: f.__name__,
)
def test_what_changes_outside_of_the_model(between):
    """Globals, class attributes, clocks, iterators, generators: refused, with the line."""
    message = refused(with_state(between), "on the same batch")
    assert re.search(line_of(between), message), message


def test_a_list_that_grows_elsewhere():
    """What makes more calls each time is refused as well."""

    def grows(self, x):
        KEPT["list"].append(x.detach().mean())
        return x + sum(KEPT["list"])

    KEPT["list"].clear()
    message = refused(with_state(grows), "forward returns other numbers when it is run again")
    assert "it makes 11 calls, then" in message or "it calls" in message


def test_python_draws():
    """Keyed, as torch's are."""
    trains(with_state(from_python))
    trains(with_state(lambda _, x: x * torch.rand_like(x)))


class Counts(nn.Linear):
    """A block that keeps a number and a tensor in attributes."""

    times = 0
    before = None

    def forward(self, x):
        self.times += 1
        x = super().forward(x) * self.times
        x = x if self.before is None else x + self.before
        self.before = x.detach().mean()
        return x


class CountsInside(Stack):
    """A stack of such."""

    def layer(self):
        return Counts(WIDTH, WIDTH)


def test_state_inside_blocks_is_exact():
    """Building leaves it as it was, and each step goes on from the one before."""
    trains(CountsInside)


def test_state_inside_blocks_and_recomputation():
    """It would advance twice where forwards run again: refused, with the block."""
    message = refused(CountsInside, "forward returns other numbers", recompute="all")
    assert "layers.0 at" in message


def test_writing_to_a_parameter():
    """Refused between blocks with the line, and inside blocks by name."""

    def decays(self, x):
        with torch.no_grad():
            self.layers[0].weight.mul_(0.9)  # here
        return x

    class Decays(nn.Linear):
        def forward(self, x):
            with torch.no_grad():
                self.weight.mul_(0.9)
            return super().forward(x)

    message = refused(with_state(decays), r"forward writes to the parameter layers\.0\.weight, at")
    assert re.search(line_of(decays), message), message
    inside = type("Inside", (Stack,), {"layer": lambda _: Decays(WIDTH, WIDTH)})
    refused(inside, r"writes to the parameter layers\.0\.weight, inside the block that has it")
