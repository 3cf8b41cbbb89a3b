"""Python between blocks that looks at activations is refused with its line; the remedies work."""

import re

import numpy as np
import pytest
import torch

import intandem as it
from explained import KEPT, Inside, Stack, data, line_of, loss, moved, refused, trains


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
