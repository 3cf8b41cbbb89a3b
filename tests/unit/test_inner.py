"""Tensors made inside blocks and used outside them without being returned."""

import threading

import pytest
import torch
from torch import nn

import intandem as it
from intandem.errors import CaptureError
from intandem.recorder import capture


class Gate(nn.Module):
    """Called twice; of its two results the layer returns neither."""

    def __init__(self):
        super().__init__()
        self.score = nn.Linear(4, 3)

    def forward(self, x):
        scores = self.score(x)
        return scores.softmax(-1), scores


class Routed(nn.Module):
    """A layer with a gate, and with tensors that it leaves in an attribute and in a list."""

    def __init__(self):
        super().__init__()
        self.gate = Gate()
        self.inner = nn.Linear(4, 4)
        self.balance = None
        self.box = []

    def forward(self, x):
        first, _ = self.gate(x)
        second, scores = self.gate(self.inner(x))
        self.balance = scores.logsumexp(-1).square().mean()
        self.box = [scores]
        return self.inner(x) * first.sum(-1, keepdim=True) + second[..., :1]


class Mixture(nn.Module):
    """``collect`` gives what of each layer goes into the loss besides the output."""

    def __init__(self, collect, *, shared=False):
        super().__init__()
        self.layers = nn.ModuleList(Routed() for _ in range(4))
        if shared:
            self.layers = nn.ModuleList([self.layers[0]] * 4)
        self.collect = collect
        self.double()

    def forward(self, x):
        rest = []
        for layer in self.layers:
            x = layer(x)
            rest.append(self.collect(layer))
        return {"loss": x.square().mean() + sum(rest)}


COLLECTED = threading.local()


def collect(module, args, output):
    """As libraries do it: only while the model that collects runs, in this thread."""
    del module, args
    if getattr(COLLECTED, "scores", None) is not None:
        COLLECTED.scores.append(output[1])


class Hooked(Mixture):
    """Collects what gates return by hooks, both calls of each layer."""

    def __init__(self):
        super().__init__(lambda layer: 0.0)
        for layer in self.layers:
            layer.gate.register_forward_hook(collect)

    def forward(self, x):
        COLLECTED.scores = []
        try:
            loss = super().forward(x)["loss"]
            return {"loss": loss + sum(s.square().mean() for s in COLLECTED.scores[1:])}
        finally:
            COLLECTED.scores = None


MODELS = {
    "attribute": lambda: Mixture(lambda layer: layer.balance),
    "attribute of a shared layer": lambda: Mixture(lambda layer: layer.balance, shared=True),
    "returned inside": lambda: Mixture(lambda layer: layer.box[0].tanh().mean()),
    "hooks": Hooked,
}


@pytest.mark.parametrize("recompute", ["none", "all"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_it_is_a_value_that_the_block_makes(name, ranks, recompute):
    """Read anew in each run of the block; its gradient goes back into the block."""
    torch.manual_seed(0)
    model, x = MODELS[name](), torch.randn(6, 4, dtype=torch.float64)
    found = it.check(model, x, ranks=ranks, microbatches=3, recompute=recompute)
    assert found.equal, found.worst()


def test_the_recording_says_where_it_is():
    """By the module that returned it, in which of its calls, as which leaf; or by attribute."""
    torch.manual_seed(0)
    x = torch.randn(2, 4, dtype=torch.float64)
    hooked = capture(MODELS["hooks"](), x)
    places = [place for call in hooked.calls for place, _ in call.inner]
    calls = [(p.module, p.call, p.leaf, p.attribute) for p in places]
    assert calls == [("gate.score", n, 0, None) for n in (1, 0, 1, 0, 1, 0, 1)]
    left = capture(MODELS["attribute"](), x)
    places = [place for call in left.calls for place, _ in call.inner]
    assert [(p.module, p.attribute) for p in places] == [("", "balance")] * 4


def test_what_cannot_be_found_again_is_refused():
    """A tensor in a list that no module returned."""

    class Boxed(Routed):
        def forward(self, x):
            y = super().forward(x)
            self.box = [y.mean()]
            return y

    model = Mixture(lambda layer: layer.box[0])
    model.layers[1] = Boxed().double()
    with pytest.raises(CaptureError, match=r"made inside a block is used outside it, at .*test_i"):
        capture(model, torch.randn(2, 4, dtype=torch.float64))


def test_what_glue_has_written_to_is_refused():
    """The block leaves it as it was; whoever reads it later would miss the write."""

    class Overwritten(Mixture):
        def forward(self, x):
            y = self.layers[0](x)
            y.mul_(2)
            return y + self.layers[0].kept

    class Keeps(Routed):
        def forward(self, x):
            y = super().forward(x)
            self.kept = y[:]
            return y

    model = Overwritten(None)
    model.layers[0] = Keeps().double()
    with pytest.raises(CaptureError, match="made inside a block is used outside it"):
        capture(model, torch.randn(2, 4, dtype=torch.float64))


def test_what_another_block_reads_is_refused():
    """It would reach that block behind the pipeline's back."""

    class Reads(nn.Linear):
        def forward(self, x):
            return super().forward(x) * self.other[0].balance

    model = Mixture(lambda layer: 0.0)
    model.layers[2] = Reads(4, 4).double()
    model.layers[2].other = [model.layers[0]]
    with pytest.raises(CaptureError, match="made outside a block reaches"):
        capture(model, torch.randn(2, 4, dtype=torch.float64))


def test_what_blocks_share_without_computing_it_is_nobodys():
    """A table out of nothing, kept by whichever block comes first; and a block's own state."""
    tables = {}

    class Tabled(nn.Linear):
        def __init__(self, *sizes):
            super().__init__(*sizes)
            self.register_buffer("mean", torch.zeros(()))

        def forward(self, x):
            order = tables.setdefault("order", torch.arange(4).flip(0))
            self.mean = self.mean * 0.5 + x.detach().mean()
            return super().forward(x)[:, order]

    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(Tabled(4, 4) for _ in range(3))

        def forward(self, x):
            for index in (0, 1, 1, 2):
                x = self.layers[index](x)
            return x

    model = Stack().double()
    x = torch.randn(6, 4, dtype=torch.float64)
    found = it.check(model, x, lambda y, _: y.square().mean(), ranks=2, microbatches=3)
    assert found.equal, found.worst()


def test_a_block_that_leaves_it_no_more_is_told():
    """What follows would read an old tensor."""
    model = Mixture(lambda layer: layer.box[0].tanh().mean())
    x = torch.randn(6, 4, dtype=torch.float64)
    with it.Pipeline(model, example=x, ranks=2, microbatches=3) as pipe:
        pipe.step(x)
        model.layers[1].forward = model.layers[1].inner.forward
        with pytest.raises(it.PipelineError, match=r"layers\.1 did not leave a tensor"):
            pipe.step(x)
