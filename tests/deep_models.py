"""Models deep enough for two stages on each of four ranks: the families of the equivalence matrix.

DEEP maps a name to a function of the number of rows, as SAMPLES in ``models`` does.
"""

import torch
from torch import nn
from torch.nn import functional as F

from models import GPT, WIDTH, Sample, language, numbers, pad, padded_sum, regression, row_mean

DEPTH = 9
ROWS = 10
"""Divided by 2, 5 and 10, and not by 3, 4 and 8."""

DEEP = {}


def deep(function):
    """Enter a function in DEEP: built from a fixed seed, in float64 and training mode."""

    def build(rows=ROWS):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(21)
            model, batch, loss = function(rows)
        return Sample(model.double().train(), batch, loss)

    DEEP[function.__name__] = build
    return build


@deep
def layers(rows):
    blocks = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(DEPTH)]
    return regression(nn.Sequential(*blocks), rows)


@deep
def tied_language_model(rows):
    model = GPT(vocab=11, seq=5, width=8, num_blocks=DEPTH - 2, num_heads=2, tied=True)
    return language(model, rows)


@deep
def padded_language_model(rows):
    model = GPT(vocab=11, seq=5, width=8, num_blocks=DEPTH - 2, num_heads=2)
    batch = {"ids": torch.randint(11, (rows, 5)), "labels": pad(torch.randint(11, (rows, 5)))}
    return Sample(model, batch, padded_sum)


@deep
def dropped_out_language_model(rows):
    model = GPT(vocab=11, seq=5, width=8, num_blocks=DEPTH - 2, num_heads=2, dropout=0.3)
    return language(model, rows)


@deep
def convolutions(rows):
    blocks = [nn.Sequential(nn.Conv1d(2, 2, 3, padding=1), nn.Tanh()) for _ in range(DEPTH)]
    return Sample(nn.Sequential(*blocks), (numbers(rows, 2, 6), numbers(rows, 2, 6)), row_mean)


class Normalised(nn.Module):
    """Batch normalisation in every block."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)) for _ in range(DEPTH)
        )

    def forward(self, x):
        for block in self.blocks:
            x = x + torch.tanh(block(torch.cat([x, 2 * x]))[: len(x)])  # never a batch of one row
        return x


@deep
def batch_normalised(rows):
    return regression(Normalised(), rows)


class Skips(nn.Module):
    """A way down and a way up with a skip between each pair of levels."""

    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH // 2))
        self.middle = nn.Linear(WIDTH, WIDTH)
        self.up = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH) for _ in range(DEPTH // 2))

    def forward(self, x):
        skips = []
        for block in self.down:
            x = torch.tanh(block(x))
            skips.append(x)
        x = self.middle(x)
        for block in self.up:
            x = torch.tanh(block(torch.cat([x, skips.pop()], -1)))
        return x


@deep
def skips(rows):
    return regression(Skips(), rows)


class Inputs(nn.Module):
    """Two inputs, the second of which every other block reads, and two targets."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH))

    def forward(self, left, right):
        for index, block in enumerate(self.blocks):
            left = torch.tanh(block(left)) + (right if index % 2 else left)
        return left, left.sum(-1)


def two_targets(output, batch):
    return {
        "loss": F.mse_loss(output[0], batch[2]) + F.mse_loss(output[1], batch[3]),
        "error": (output[1] - batch[3]).abs().mean(),
    }


@deep
def several_inputs(rows):
    batch = (numbers(rows, WIDTH), numbers(rows, WIDTH), numbers(rows, WIDTH), numbers(rows))
    return Sample(Inputs(), batch, two_targets)


class FanOut(nn.Module):
    """A value that every later block reads."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH - 1))

    def forward(self, x):
        memory = torch.tanh(self.stem(x))
        x = memory
        for block in self.blocks:
            x = torch.sigmoid(block(x * memory)) + memory
        return x


@deep
def fan_out(rows):
    return regression(FanOut(), rows)


@deep
def frozen_parts(rows):
    model, batch, loss = regression(
        nn.Sequential(*[nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(DEPTH)]),
        rows,
    )
    for index in (0, 1, 4, 8):
        model[index].requires_grad_(requires_grad=False)
    return Sample(model, batch, loss)


class SharedBlocks(nn.Module):
    """Three modules, each called three times."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x):
        for _ in range(DEPTH // 3):
            for block in self.blocks:
                x = torch.tanh(block(x)) + x
        return x


@deep
def shared_blocks(rows):
    return regression(SharedBlocks(), rows)


UPDATING = frozenset({"batch_normalised"})
"""Families that update buffers, which schedules that hold a stage twice refuse."""
