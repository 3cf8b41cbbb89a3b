"""What the user may change between steps, plain module against pipeline."""

import copy
from contextvars import ContextVar

import numpy
import pytest
import torch
from torch import nn

import intandem as it
from harness import TOLERANCE, gradients, relative_error

OPTIONS = it.Options(threads_per_rank=1)


def pair(make):
    """Two models alike."""
    torch.manual_seed(5)
    model = make().double()
    return model, copy.deepcopy(model)


FACTOR = ContextVar("factor", default=1.0)


class Scaled(nn.Linear):
    def forward(self, x):
        return super().forward(x) * FACTOR.get()


def test_blocks_see_the_context_variables_of_the_caller():
    plain, model = pair(lambda: nn.Sequential(*(Scaled(4, 4) for _ in range(3))))
    batch = torch.randn(6, 4, dtype=torch.float64)
    with it.Pipeline(
        model, example=batch, loss=square, ranks=2, microbatches=1, options=OPTIONS
    ) as pipe:
        for factor in (2.0, 3.0):
            token = FACTOR.set(factor)
            square(plain(batch), batch).backward()
            pipe.step(batch)
            FACTOR.reset(token)
    assert relative_error(gradients(model), gradients(plain)) <= TOLERANCE


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.layer, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(torch.tanh(self.layer(self.embed(x))))


def test_a_parameter_replaced_beside_a_shared_one_is_trained():
    plain, model = pair(Tied)
    batch = torch.randint(7, (6, 5))
    with it.Pipeline(
        model, example=batch, loss=square, ranks=2, microbatches=1, options=OPTIONS
    ) as pipe:
        for module in (plain, model):
            module.head.bias = nn.Parameter(torch.ones(7, dtype=torch.float64))
        square(plain(batch), batch).backward()
        pipe.step(batch)
    assert relative_error(gradients(model), gradients(plain)) <= TOLERANCE


class Sized(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
        self.register_buffer("table", torch.ones(3))
        self.register_buffer("offset", None)

    def forward(self, x):
        x = x * self.table.shape[0]
        return self.layers(x if self.offset is None else x + self.offset)


def test_buffers_may_be_replaced_by_others_of_another_size():
    plain, model = pair(Sized)
    batch = torch.randn(6, 4, dtype=torch.float64)
    with it.Pipeline(
        model, example=batch, loss=square, ranks=2, microbatches=1, options=OPTIONS
    ) as pipe:
        for length, offset in ((3, None), (5, None), (5, torch.ones(4).double())):
            for module in (plain, model):
                module.table, module.offset = torch.ones(length), offset
            square(plain(batch), batch).backward()
            pipe.step(batch)
    assert relative_error(gradients(model), gradients(plain)) <= TOLERANCE


class SparselyTied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.layer = nn.Embedding(7, 4, sparse=True), nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(self.embed(x)) @ self.embed.weight.T


def test_a_weight_with_sparse_and_dense_gradients():
    plain, model = pair(SparselyTied)
    batch = torch.randint(7, (6,))
    with it.Pipeline(
        model, example=batch, loss=square, ranks=2, microbatches=1, options=OPTIONS
    ) as pipe:
        square(plain(batch), batch).backward()
        pipe.step(batch)
    assert relative_error(gradients(model), gradients(plain)) <= TOLERANCE


FACTORS = {"global": 1.0}


def halved(x):
    return x * FACTORS["global"]


class Reads(nn.Module):
    """Glue of all that Python can hold."""

    of_class = 1.0

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.activation, self.function, self.functions = nn.Tanh(), torch.tanh, [torch.tanh]
        self.many, self.deep = [1.0] * 100, {"a": {"b": {"c": {"d": 1.0}}}}
        self.array = numpy.ones(3)

    def forward(self, x):
        x = self.activation(self.layers[0](x)) * self.many[70] * self.deep["a"]["b"]["c"]["d"]
        x = self.function(self.layers[1](halved(x))) * self.of_class
        return self.functions[0](self.layers[2](x * float(self.array.sum())))


def replaced_module(model):
    model.activation = nn.Sigmoid()


def replaced_forward(model):
    model.activation.forward = torch.sin


def hook_of_function(model):
    model.activation.register_forward_hook(lambda module, given, output: output * 2)


def hook_of_model(model):
    model.register_forward_pre_hook(lambda module, given: (given[0] * 2,))


def other_function(model):
    model.function = torch.sin


def other_function_in_list(model):
    model.functions[0] = torch.sin


def item_of_many(model):
    model.many[70] = 2.0


def item_deep_inside(model):
    model.deep["a"]["b"]["c"]["d"] = 3.0


def item_of_array(model):
    model.array[1] = 7


def number_of_class(model):
    type(model).of_class = 3.0


def number_of_module(model):
    del model
    FACTORS["global"] = 3.0


CHANGES = [
    replaced_module,
    replaced_forward,
    hook_of_function,
    hook_of_model,
    other_function,
    other_function_in_list,
    item_of_many,
    item_deep_inside,
    item_of_array,
    number_of_class,
    number_of_module,
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_glue_reads_in_python_may_change(change, monkeypatch):
    monkeypatch.setattr(Reads, "of_class", 1.0)
    monkeypatch.setitem(FACTORS, "global", 1.0)
    plain, model = pair(Reads)
    batch = torch.randn(6, 4, dtype=torch.float64)
    with it.Pipeline(
        model, example=batch, loss=square, ranks=2, microbatches=1, options=OPTIONS
    ) as pipe:
        for number in range(4):
            if number == 1:
                change(plain)
                change(model)
            square(plain(batch), batch).backward()
            pipe.step(batch)
        assert pipe.num_recordings <= 3
    assert relative_error(gradients(model), gradients(plain)) <= TOLERANCE


def square(output, batch):
    del batch
    return output.square().mean()
