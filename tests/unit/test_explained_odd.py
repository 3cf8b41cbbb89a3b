"""Models that look odd and work."""

import functools

import pytest
import torch

import intandem as it
from explained import KEPT, WIDTH, Stack, data, loss, trains, with_state
from intandem.equality import Splitting, compare, numbers_of, one_process


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
