"""Draws that decide which blocks run: every micro-batch takes the path that one process takes."""

import copy

import pytest
import torch
from torch import nn

import intandem as it
from intandem.equality.comparison import compare, numbers_of
from intandem.equality.witness import Splitting, one_process
from intandem.errors import CaptureError
from intandem.recorder import bind_by_signature
from intandem.recorder.capture import record
from intandem.recorder.cut import Cuts, cut, same_cuts, segments
from zoo.examine import different_bits


def square(output, batch):
    del batch
    return output.square().mean()


class Dropped(nn.Module):
    """Four layers, each of which is left out with a probability."""

    def __init__(self, probability):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        self.head = nn.Linear(4, 2)
        self.probability = probability
        self.double()

    def forward(self, x):
        for layer in self.layers:
            if torch.rand([]) >= self.probability:
                x = x + layer(x).tanh()
        return self.head(x)


class Chosen(Dropped):
    """Takes its layers in an order that is drawn."""

    def forward(self, x):
        first = int(torch.rand([]) < 0.5)
        for step in range(4):
            x = x + self.layers[(first + step) % 4](x).tanh()
        return self.head(x)


def steps(model, num_ranks, num_steps=6):
    """Numbers of each step of a pipeline, held against one process's."""
    torch.manual_seed(1)
    x = torch.randn(6, 4, dtype=torch.float64)
    plain, found = copy.deepcopy(model), []
    with it.Pipeline(model, example=x, loss=square, ranks=num_ranks, microbatches=3) as pipe:
        for step in range(num_steps):
            model.zero_grad()
            plain.zero_grad()
            found.append(numbers_of(model, float(pipe.step(x))))
            equality = compare(found[-1], one_process(plain, x, square, Splitting(3), step=step))
            assert equality.equal, equality.worst()
    return found, pipe.num_recordings


def model_of(kind, probability):
    torch.manual_seed(0)
    return kind(probability)


@pytest.mark.parametrize("probability", [0.3, 0.8])
def test_dropped_layers(probability):
    """Whole stages may be left out; bits are the same for 1, 2 and 4 stages."""
    one, num_paths = steps(model_of(Dropped, probability), 1)
    assert num_paths > 3
    for num_ranks in (2, 4):
        found, _ = steps(model_of(Dropped, probability), num_ranks)
        assert not any(different_bits(a, b) for a, b in zip(found, one, strict=True))


def test_paths_taken_before_are_not_recorded_again():
    """A layer that is never dropped costs one recording."""
    assert steps(model_of(Dropped, 0.0), 2)[1] == 1


def test_an_order_that_is_drawn_is_refused():
    """No stage has the parameters of a layer that any stage may run."""
    with pytest.raises(CaptureError, match=r"by the draws .* forward .* order"):
        steps(model_of(Chosen, 0.0), 2)


class Turned(nn.Module):
    """A convolution, and what follows it sees its result with the dims exchanged."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.double()

    def forward(self, x):
        x = nn.functional.gelu(self.first(x)).permute(0, 2, 1)
        for layer in self.layers:
            x = x + layer(x)
        return x


def test_gradients_keep_their_layout():
    """A convolution's gradient has the same bits wherever the cut is."""
    found = []
    for num_ranks in (1, 2, 4):
        torch.manual_seed(0)
        model, x = Turned(), torch.randn(6, 3, 40, dtype=torch.float64)
        with it.Pipeline(model, example=x, loss=square, ranks=num_ranks, microbatches=2) as pipe:
            found.append(numbers_of(model, float(pipe.step(x))))
    assert not different_bits(found[1], found[0])
    assert not different_bits(found[2], found[0])


class PerRow(nn.Module):
    """Calls a parameter once for each row, so that a smaller batch has fewer calls."""

    def __init__(self):
        super().__init__()
        self.end = nn.Parameter(torch.ones(4))
        self.head = nn.Linear(4, 2)
        self.double()

    def forward(self, x):
        rows = [row * self.end[None] for row in x]
        return self.head(torch.cat(rows))


def test_a_stage_begins_where_its_calls_begin():
    """Even if the call it begins with for the example is not there for a smaller micro-batch."""
    model, x = PerRow(), torch.randn(3, 4, dtype=torch.float64)
    for start in (1, 2, 3):
        first, second = cut_at(model, x, [0, start])
        assert first.calls
        assert second.calls


def cut_at(model, x, starts):
    """A micro-batch of two rows, cut as one of three is at those segments."""
    bind = bind_by_signature(model, loss_is_separate=True)
    three, two = (record(model, x[:rows], bind).graph for rows in (3, 2))
    names = tuple((segment.name, segment.call) for segment in segments(three))
    return cut(two, same_cuts(two, Cuts(names, tuple(starts))))
