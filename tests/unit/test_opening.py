"""Blocks beside an uneven cut are looked into, and cut inside where that is worth it."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import intandem as it
from intandem.errors import CaptureError
from intandem.pipeline import agreed_plan
from intandem.profiler.segments import SegmentCost

WIDTH = 8


class Block(nn.Module):
    """Two linear layers around a residual stream, the second with half of the block's weights."""

    def __init__(self, dropout=0.0, *, decides=False, looks=False, hooked=False, recomputes=None):
        super().__init__()
        self.looks, self.hooked, self.recomputes = looks, hooked, recomputes
        self.norm, self.first = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.second = nn.Linear(2 * WIDTH, WIDTH)
        self.dropout, self.decides = nn.Dropout(dropout), decides

    def forward(self, x):
        if self.decides and x.sum() > 1e9:
            return x
        if self.looks and not self.training:
            self.seen = x.sum().item()
        if self.recomputes:
            return x + checkpoint(self.add, x, **self.recomputes)
        added = self.add(x)
        if self.hooked and added.requires_grad:
            added.register_hook(lambda gradient: gradient)
        return x + added

    def add(self, x):
        return self.dropout(self.second(F.gelu(self.first(self.norm(x)))))


class Model(nn.Module):
    """Three equal blocks: two stages of whole ones have one and two. Three of four: one has two."""

    def __init__(self, num_blocks=3, **kwargs):
        super().__init__()
        self.blocks = nn.ModuleList(Block(**kwargs) for _ in range(num_blocks))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture
def seconds(monkeypatch):
    """What an element of a parameter costs, in each measurement; the last holds from then on."""
    each, sizes = [1e-4], {name: p.numel() for name, p in Model(4).named_parameters()}

    def costs(graph, found, *rest):
        del rest
        element_s = each.pop(0) if len(each) > 1 else each[0]
        calls = [graph.calls[part.start : part.end] for part in found]
        names = [{name for call in part for name in call.parameters} for part in calls]
        return tuple(SegmentCost(*[element_s * sum(map(sizes.get, part))] * 3) for part in names)

    monkeypatch.setattr(agreed_plan, "measure_segments", costs)
    return each


def pipeline(model, batch, **kwargs):
    kwargs = {"ranks": 2, "options": it.Options(threads_per_rank=1, open_blocks=True), **kwargs}
    return it.Pipeline(model, example=batch, loss=F.mse_loss, microbatches=2, **kwargs)


def opened(pipe):
    return pipe._assembly.plan.opened


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.randn(4, WIDTH, dtype=torch.float64)


def test_cut_inside_of_a_block(seconds, batch):
    """The middle block is cut; loss and gradients have the bits of one rank's."""
    torch.manual_seed(0)
    model = Model().double()
    alone = copy.deepcopy(model)
    with pipeline(alone, batch, ranks=1) as pipe:
        expected = float(pipe.step(batch))
        pipe.step(batch)
        assert opened(pipe) == ()
    with pipeline(model, batch) as pipe:
        assert opened(pipe) == ("blocks.1",)
        stage_s = pipe._assembly.plan.stage_s()
        assert max(stage_s) < 1.1 * min(stage_s)
        assert float(pipe.step(batch)) == expected
        assert float(pipe.step(batch)) == expected
    for ours, plain in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.equal(ours.grad, plain.grad)


@pytest.mark.parametrize(
    ("model", "asked"),
    [
        ({"dropout": 0.1}, {}),
        ({"decides": True}, {}),
        ({"looks": True}, {}),
        ({"recomputes": {"use_reentrant": False}}, {}),
        ({"hooked": True}, {}),
        ({}, {"options": it.Options(threads_per_rank=1)}),
        ({}, {"blocks": ["blocks.1"]}),
        ({}, {"blocks": [Block]}),
        ({}, {"split_points": ["blocks.1"]}),
    ],
    ids=[
        "draws",
        "decides by data",
        "other in evaluation",
        "recomputes",
        "hooks on tensors",
        "not asked",
        "named",
        "class named",
        "cut by hand",
    ],
)
def test_kept_whole(seconds, batch, model, asked):
    """Blocks that draw, cannot be recorded, or are the user's to say; the pipeline runs."""
    with pipeline(Model(**model).double(), batch, **asked) as pipe:
        assert opened(pipe) == ()
        pipe.step(batch)


def test_what_will_draw_is_kept_whole(seconds, batch):
    """A pipeline that is built in evaluation mode may be trained."""
    model = Model(dropout=0.1).double().eval()
    with pipeline(model, batch) as pipe:
        assert opened(pipe) == ()
        model.train()
        pipe.step(batch)


def test_named_beside_one_that_is_opened(seconds, batch):
    """What is named stays whole, and may get hooks, where a block beside another cut is opened."""
    model, seen = Model(4).double(), []
    with pipeline(model, batch, ranks=3) as pipe:
        assert opened(pipe) == ("blocks.1", "blocks.2")
    with pipeline(model, batch, ranks=3, blocks=["blocks.1"]) as pipe:
        assert opened(pipe) == ("blocks.2",)
        model.blocks[1].register_forward_hook(lambda *_: seen.append(1))
        pipe.step(batch)
    assert seen == [1, 1]


def test_a_machine_that_slows_down(seconds, batch):
    """Pieces are measured after whole blocks: how even stages are is compared, not how fast."""
    seconds.append(3e-4)
    with pipeline(Model().double(), batch) as pipe:
        assert opened(pipe) == ("blocks.1",)


def test_little_is_not_worth_it(seconds, batch):
    """Microseconds are not worth recording a model again for."""
    seconds[0] = 1e-8
    with pipeline(Model().double(), batch) as pipe:
        assert opened(pipe) == ()


@pytest.mark.parametrize("when", ["before", "after"])
def test_hooks_of_blocks(seconds, batch, when):
    """A block with hooks is kept whole; one that gets them once it is cut inside is refused."""
    model, seen = Model().double(), []
    if when == "before":
        model.blocks[1].register_forward_hook(lambda *_: seen.append(1))
    with pipeline(model, batch) as pipe:
        if when == "after":
            model.blocks[1].register_forward_hook(lambda *_: seen.append(1))
            with pytest.raises(
                CaptureError, match=r"blocks\.1 may be cut inside.*blocks=\['blocks.1'\]"
            ):
                pipe.step(batch)
            return
        assert opened(pipe) == ()
        seen.clear()
        pipe.step(batch)
    assert seen == [1, 1]


def test_draws_that_come_later_are_refused(seconds, batch):
    """They would be keyed by other names than those of one rank."""
    model = Model().double()
    with pipeline(model, batch) as pipe:
        pipe.step(batch)
        model.blocks[1].dropout.p = 0.5
        with pytest.raises(CaptureError, match=r"draws random numbers now; blocks\.1 may be cut"):
            pipe.step(batch)


@pytest.mark.parametrize("is_reentrant", [True, False])
def test_recomputation_that_comes_later_is_refused(seconds, batch, is_reentrant):
    """It would be lost, as stages call what is in the block."""
    model = Model().double()
    with pipeline(model, batch) as pipe:
        pipe.step(batch)
        model.blocks[1].recomputes = {"use_reentrant": is_reentrant}
        with pytest.raises(CaptureError, match=r"again in backward now; blocks\.1 may be cut"):
            pipe.step(batch)


def test_what_cannot_be_recorded_later_says_that_a_block_is_cut_inside(seconds, batch):
    model = Model().double()
    with pipeline(model, batch) as pipe:
        pipe.step(batch)
        model.blocks[1].decides = True
        with pytest.raises(CaptureError, match=r"blocks=\['blocks\.1'\] keeps it whole"):
            pipe.step(batch)
