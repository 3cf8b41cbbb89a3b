"""What cannot be recorded is refused with its line and a remedy, and the remedy works.

Each refused model is listed with what it is to be replaced by, or with the argument that helps;
that is then trained against one process.
"""

import collections
import functools
import itertools
import random
import re
import time
from pathlib import Path

import numpy as np
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


# Python that looks at activations.


def branches(x):
    return x * 2 if x.detach().sum() > 0 else x  # here


def takes_item(x):
    return x * x.detach().abs().max().item()  # here


def repeats(x):
    while x.detach().abs().max() > 0.3:  # here
        x = x * 0.7
    return x


def selects(x):
    return x + x[x > 0].sum()  # here


def logs(x):
    KEPT["text"] = f"{x.detach().mean():.3f}"  # here
    return x


def lists(x):
    return x * x.detach().flatten().tolist()[0]  # here


def converts(x):
    return x + torch.from_numpy(x.detach().numpy() * 2)  # here


def arrays(x):
    return x * float(np.asarray(x.detach()).sum())  # here


def sorts(x):
    return x[sorted(range(len(x)), key=lambda row: float(x.detach()[row].sum()))]  # here


def differentiates(x):
    with torch.enable_grad():
        y = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(y.square().sum(), y)  # here
    return x + slope


LOOKING = {
    branches: "depends on the value of an activation or parameter",
    takes_item: "depends on the value of an activation or parameter",
    repeats: "depends on the value of an activation or parameter",
    selects: "depends on the value of an activation or parameter",
    logs: "depends on the value of an activation or parameter",
    lists: "depends on the value of an activation or parameter",
    sorts: "depends on the value of an activation or parameter",
    converts: r"forward calls numpy\(\) between blocks",
    arrays: r"forward calls __array__\(\) between blocks",
    differentiates: r"forward calls grad\(\) between blocks",
}


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


@pytest.mark.filterwarnings("ignore:Converting a tensor")
@pytest.mark.parametrize("function", LOOKING, ids=lambda f: f.__name__)
def test_python_that_looks_at_activations(function):
    """Refused between blocks with the line; in a module that is kept whole it works."""
    stack = type("Odd", (Stack,), {"between": lambda _, x: function(x)})
    message = refused(stack, LOOKING[function])
    assert re.search(line_of(function), message), message
    assert "blocks=[...]" in message
    trains(moved(function), blocks=[Inside])


def test_the_module_to_keep_whole_is_named():
    """Where such Python is in a module of its own, that is what the message says to keep."""
    message = refused(moved(branches), "depends on the value")
    assert "keep the module around it whole (blocks=['inside'])" in message
    trains(moved(branches), blocks=["inside"])


def test_looking_can_be_done_in_a_hook():
    """A hook of a block sees every micro-batch, and may turn tensors into numbers."""
    seen = []

    def make():
        model = Stack()
        model.layers[1].register_forward_hook(lambda *a: seen.append(a[2].detach().mean().item()))
        return model

    with it.Pipeline(make(), example=data(), loss=loss, ranks=2, microbatches=3) as pipe:
        pipe.step(data())
        seen.clear()
        pipe.step(data())
    assert len(seen) == 3
    trains(make)


# Tensors hidden in Python objects.


class Cache:
    """Holds what blocks have made."""

    def __init__(self):
        self.seen = []


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
    assert f"test_explained.py:{line};" in message

    class Registered(Stack):
        def prepare(self):
            self.free = nn.Parameter(torch.ones(WIDTH))

        def between(self, x):
            return x * self.free

    trains(Registered)


# What one call leaves for the next.


def with_state(between, prepare=lambda _: None):
    """A stack that carries something from call to call."""
    return type("Carries", (Stack,), {"between": between, "prepare": prepare})


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


# What is odd and works.


class Yields(Stack):
    """A generator, a view of a parameter and the input among the outputs, any arguments."""

    def forward(self, *args, **kwargs):
        def made(x):
            for layer in self.layers:
                x = layer(x, **kwargs)
                yield x

        (x,) = args
        return {"sum": sum(made(x)), "view": self.layers[0].weight[:2], "input": x}


def doubled(forward):
    @functools.wraps(forward)
    def call(*args, **kwargs):
        return forward(*args, **kwargs) * 2

    return call


class Decorated(Stack):
    """Decorators of all kinds."""

    @torch.no_grad()
    def scale(self, x):
        return x.abs().max()

    @torch.jit.ignore
    def add(self, x):
        return x + 1

    @doubled
    def forward(self, x):
        x = super().forward(x)
        return self.add(x) / self.scale(x)


class Writes(Stack):
    """Writes to its input, which is the batch."""

    def forward(self, x):
        x.mul_(2)
        return super().forward(x + 0)


class Prints(Stack):
    """Looks at shapes, and prints tensors."""

    def between(self, x):
        KEPT["text"] = str(x) + repr(x.detach().mean())
        return x * x.shape[0]


def hooked():
    """Hooks on a block and on the model change what goes in and out."""
    model = Stack()
    model.layers[1].register_forward_hook(lambda _, __, output: output * 2)
    model.register_forward_hook(lambda _, __, output: output + 1)
    model.register_forward_pre_hook(lambda _, args: (args[0] * 3,))
    return model


def outside():
    """A tensor from outside of the model, and a closure over it."""
    table = torch.arange(WIDTH, dtype=torch.float64)
    return with_state(lambda _, x: x * table)()


@pytest.mark.parametrize("make", [Yields, Decorated, Writes, Prints, hooked, outside])
def test_odd_models_that_work(make):
    """They have one process's numbers."""
    trains(make)


def test_a_tensor_outside_that_changes_between_steps():
    """It is read anew at each step, not frozen."""
    table = torch.ones(WIDTH, dtype=torch.float64)

    def make():
        return with_state(lambda _, x: x * table)()

    plain, ours, x = make(), make(), data()
    with it.Pipeline(ours, example=x, loss=loss, ranks=2, microbatches=3) as pipe:
        for step in range(3):
            table.add_(1)
            plain.zero_grad()
            ours.zero_grad()
            expected = one_process(plain, x, loss, Splitting(3), step=step)
            assert compare(numbers_of(ours, float(pipe.step(x))), expected).equal


class Config:
    """Settings that the first call fills in."""

    kind = None

    def __init__(self):
        self.kind = None
        self.scale = 2.0


def fills_in(self, x):
    if self.config.kind is None:
        self.config.kind = "known"
    return x * self.config.scale


def test_settings_filled_in_by_the_first_call():
    """Once they are there nothing changes any more; settings changed between steps are followed."""
    make = with_state(fills_in, lambda self: setattr(self, "config", Config()))
    trains(make)
    plain, ours, x = make(), make(), data()
    with it.Pipeline(ours, example=x, loss=loss, ranks=2, microbatches=3) as pipe:
        for step, scale in enumerate((2.0, 3.0, 0.5)):
            plain.config.scale = ours.config.scale = scale
            plain.zero_grad()
            ours.zero_grad()
            expected = one_process(plain, x, loss, Splitting(3), step=step)
            assert compare(numbers_of(ours, float(pipe.step(x))), expected).equal


# What reaches a block past its arguments.


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
