"""A model without data is recorded as it would be with data."""

import copy

import pytest
import torch
from torch import nn

import intandem as it
from intandem.errors import CaptureError
from intandem.pipeline.ownership import free_parameters
from intandem.recorder import bind_by_signature
from intandem.recorder.capture import record
from intandem.recorder.cut import Cuts
from intandem.runtime.recordings import Recordings
from intandem.runtime.stage import Draw
from intandem.runtime.weights import Weights
from models import SAMPLES


def on_meta(model):
    """A copy whose parameters are on meta; buffers have data, as a pipeline gives them."""
    model = copy.deepcopy(model)
    made = {}
    for module in model.modules():
        for key, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in made:
                made[id(parameter)] = nn.Parameter(
                    parameter.detach().to("meta"), parameter.requires_grad
                )
            setattr(module, key, made[id(parameter)])
    return model


def facts(graph):
    calls = [
        (c.kind, c.name, c.outputs, c.renewed, c.parameters, c.buffers, c.updates, c.site)
        for c in graph.calls
    ]
    guards = [(guard.outcome, guard.args) for guard in graph.guards]
    return calls, graph.values, graph.inputs, guards, graph.output, graph.unused


@pytest.mark.parametrize("name", SAMPLES)
def test_the_recording_is_that_of_the_model_with_data(name):
    model, batch, loss = SAMPLES[name]()
    bind = bind_by_signature(model, loss_is_separate=loss is not None)
    expected = it.capture(model, batch, bind=bind)
    found = it.capture(on_meta(model), batch, bind=bind)
    for own, theirs in zip(facts(found), facts(expected), strict=True):
        assert own == theirs


class Unseen(nn.Module):
    """Writes to its buffer where torch does not count it."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen.data.add_(1)
        return self.linear(x)


def test_buffers_once_updated_are_updated_in_new_shapes_too():
    """Even where the new shape is recorded without the data to show it."""
    model = nn.Sequential(Unseen(), Unseen())
    bind = bind_by_signature(model, loss_is_separate=True)
    graph = record(model, torch.randn(4, 3), bind).graph
    recordings = Recordings(model, bind, Weights(model, graph), Cuts((), (0,)), [])
    first = recordings.find(torch.randn(4, 3), Draw(0, 0, 0))
    free_parameters(model, ())
    second = recordings.find(torch.randn(2, 3), Draw(0, 0, 0))
    updates = [call.updates for call in first.graph.calls]
    assert updates == [("0.seen",), ("1.seen",)]
    assert [call.updates for call in second.graph.calls] == updates


class Frames(nn.Module):
    """Collects what blocks return in memory that glue has made."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))

    def forward(self, x):
        frames = torch.zeros(len(self.blocks), *x.shape)
        view = frames[0]
        for index, block in enumerate(self.blocks):
            x = block(x)
            frames[index] = x
        return frames.sum(0) + view


def test_memory_made_by_glue_may_be_written_to_without_data():
    """The call that made it runs without data, and nobody takes it for known."""
    model, batch = Frames(), torch.randn(4, 3)
    expected = it.capture(model, batch)
    found = it.capture(on_meta(model), batch)
    assert facts(found) == facts(expected)
    assert not found.values[found.calls[-1].outputs[0]].derived


class Asking(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))

    def forward(self, x):
        x = self.blocks[0](x)
        return self.blocks[1](x) if x.sum() > 0 else x


def test_a_question_to_an_activation_is_refused_on_meta_too():
    with pytest.raises(CaptureError, match=r"test_meta\.py:\d+"):
        it.capture(on_meta(Asking()), torch.randn(4, 3))


class Looking(nn.Module):
    """Looks at activations inside, writes to a buffer, and hands on what it is given."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x):
        self.seen[: len((x > 1e9).nonzero()) + 1] += 1
        y = self.linear(x)
        return (y.mul_(2) if float(x.detach().sum()) < 1e9 else y), x


class AllLooking(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Looking() for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            y, same = block(x)
            x = y + same
        return x


def test_blocks_that_look_at_numbers_run_on_zeros():
    """The recording is that of the model with data, buffers and what is handed on included."""
    model, batch = AllLooking(), torch.randn(4, 3)
    expected = it.capture(model, batch)
    found = it.capture(on_meta(model), batch)
    assert facts(found) == facts(expected)
    assert [c.updates for c in found.calls if c.updates] == [
        (f"blocks.{i}.seen",) for i in range(3)
    ]


class Insisting(Looking):
    def forward(self, x):
        if float(self.linear(x).detach().abs().sum()) == 0:
            raise ValueError
        return x


def test_a_block_that_cannot_run_on_zeros_is_refused():
    with pytest.raises(CaptureError, match="cannot be run without data"):
        it.capture(on_meta(nn.Sequential(Insisting(), Insisting())), torch.randn(4, 3))
