"""What the user may change between steps, plain module against pipeline."""

import copy
from contextvars import ContextVar

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


def square(output, batch):
    del batch
    return output.square().mean()
