"""What forward reads from Python: followed, or refused; never frozen."""

import copy
import random

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import intandem as it
from intandem.equality.comparison import compare, numbers_of
from intandem.equality.witness import Splitting, one_process
from intandem.errors import ActionError, CaptureError, RunError
from models import SAMPLES


def square(output, batch):
    del batch
    return output.square().mean()


class Stack(nn.Module):
    """Three layers; ``between`` is called after each with the module, the layer and its output."""

    def __init__(self, between, layer=nn.Linear):
        super().__init__()
        self.layers = nn.ModuleList(layer(4, 4) for _ in range(3))
        self.between = between
        self.scale = 1.0
        self.table = None
        self.double()

    def forward(self, x):
        for layer in self.layers:
            x = self.between(self, layer, layer(x))
        return x


def built(model):
    x = torch.randn(6, 4, dtype=torch.float64)
    return it.Pipeline(model, example=x, loss=square, ranks=2, microbatches=3), x


def build_and_step(model):
    pipe, x = built(model)
    pipe.step(x)


def refused(model, match, error=CaptureError):
    with pytest.raises(error, match=match):
        build_and_step(model)


def test_a_number_on_the_model_may_change_between_steps():
    """Glue computes with the number of now, not of when it was recorded."""
    model = Stack(lambda m, _, x: x * m.scale)
    pipe, x = built(model)
    pipe.step(x)
    model.scale = 3.0

    with pipe:
        assert float(pipe.step(x)) == pytest.approx(float(square(model(x), x).detach()), rel=1e-12)
    assert pipe.num_recordings == 2


def test_a_table_made_on_first_use_is_made_by_every_stage():
    """A cache of what depends on no activation is no state; the attribute is left as it was."""

    def add_table(model, _, x):
        if model.table is None:
            model.table = torch.arange(4.0, dtype=x.dtype)
        return x + model.table

    model = Stack(add_table)
    pipe, x = built(model)

    with pipe:
        loss = float(pipe.step(x))
    assert model.table is None
    assert loss == pytest.approx(float(square(model(x), x).detach()), rel=1e-12)


def test_counting_in_forward_is_refused():
    """A number that forward changes would be frozen."""

    def count(model, _, x):
        model.scale += 1
        return x * model.scale

    refused(Stack(count), "forward sets scale between blocks")


class Jitters(nn.Linear):
    """A block that draws from Python's and NumPy's generators."""

    def forward(self, x):
        return super().forward(x) * random.random() + numpy.random.rand()


def drops(_model, _layer, x):
    """Glue that draws from both, and takes another path by it."""
    x = x * torch.tensor(numpy.random.rand(4))
    return x + 1 if random.random() < 0.5 else x


def marks(model, _layer, x):
    """Hooks its layers when it is first called, and leaves a mark, which makes no difference."""
    if not model.marked:
        for layer in model.layers:
            layer.register_forward_hook(lambda *_: None)
    model.marked = True
    return x


def marks_and_differs(model, layer, x):
    """The same, but the first call does something else."""
    return marks(model, layer, x) if model.marked else marks(model, layer, x) + 1


@pytest.mark.parametrize("layer", [nn.Linear, Jitters])
@pytest.mark.parametrize("recompute", ["none", "all"])
def test_draws_from_python_are_new_each_time(layer, recompute):
    """Each step and micro-batch has draws of its own, and they are one process's."""
    losses = []
    for ranks in (1, 3):
        torch.manual_seed(0)
        model, x = Stack(drops, layer), torch.randn(6, 4, dtype=torch.float64)
        plain = copy.deepcopy(model)
        options = {"ranks": ranks, "microbatches": 3, "recompute": recompute}
        state = random.getstate(), numpy.random.get_state()[1].tolist()
        with it.Pipeline(model, example=x, loss=square, **options) as pipe:
            for step in range(3):
                model.zero_grad()
                plain.zero_grad()
                losses.append(float(pipe.step(x)))
                expected = one_process(plain, x, square, Splitting(3), step=step)
                found = compare(numbers_of(model, losses[-1]), expected)
                assert found.equal, found.worst()
        assert state == (random.getstate(), numpy.random.get_state()[1].tolist())
    assert losses[:3] == losses[3:]
    assert len(set(losses)) == 3


@pytest.mark.parametrize("between", [drops, lambda _model, _layer, x: x])
@pytest.mark.parametrize("layer", [nn.Linear, Jitters])
def test_a_recording_says_where_python_was_drawn_from(layer, between):
    """Although the generators are looked at closely only where something is drawn."""
    model, x = Stack(between, layer), torch.randn(6, 4, dtype=torch.float64)
    state = random.getstate(), numpy.random.get_state()[1].tolist()

    graph = it.capture(model, x)

    sites = [call.site for call in graph.calls if call.name.startswith("layers")]
    assert [site is not None and site.python for site in sites] == 3 * [layer is Jitters]
    assert graph.draws_python == (between is drops)
    assert (random.getstate(), numpy.random.get_state()[1].tolist()) == state


def test_a_mark_that_makes_no_difference():
    """A library may put something off until a model is first called."""
    model = Stack(marks)
    model.marked = False
    pipe, x = built(model)
    with pipe:
        pipe.step(x)
    assert model.marked
    assert pipe.num_recordings == 1
    assert [len(layer._forward_hooks) for layer in model.layers] == [1, 1, 1]


def test_a_mark_that_makes_a_difference_is_refused():
    """The first call would be another one's."""
    model = Stack(marks_and_differs)
    model.marked = False
    refused(model, "forward sets marked between blocks")


class Averages(nn.Linear):
    """Puts a new tensor in place of its buffer in each call."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x):
        self.mean = self.mean * 0.5 + x.detach().mean()
        return super().forward(x)


class CallsTwice(nn.Module):
    """Its second layer is called twice."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Averages(4, 4) for _ in range(3))

    def forward(self, x):
        for index in (0, 1, 1, 2):
            x = self.layers[index](x)
        return x


def test_a_shared_block_that_replaces_its_buffer():
    """Its calls are not cut apart, which would change the order of updates."""
    x = torch.randn(6, 4, dtype=torch.float64)
    found = it.check(CallsTwice().double(), x, square, ranks=2, microbatches=3)
    assert found.equal, found.worst()


class Scaled(nn.Linear):
    """Leaves its scale in a list."""

    def forward(self, x):
        y = super().forward(x)
        self.scales = [y.detach().abs().mean()]
        return y


class Telling(nn.Linear):
    """Returns its scale as a Python number."""

    def forward(self, x):
        y = super().forward(x)
        return y, float(y.detach().abs().mean())


def test_a_tensor_left_in_a_list_is_refused():
    """It would be the recorded one for ever."""
    refused(
        Stack(lambda _, layer, x: x * layer.scales[0], Scaled),
        "made inside a block is used outside it, at .*test_python_state.py:",
    )


def test_a_block_that_returns_another_number_is_refused():
    """Glue was recorded with the first number."""
    refused(
        Stack(lambda _m, _l, pair: pair[0] * pair[1], Telling),
        r"layers\.0 returned .* where it returned .* when it was recorded",
        ActionError,
    )


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_a_gradient_hook_on_a_tied_weight_is_refused(register):
    """It would see the gradient of one use only."""
    model, batch, loss = SAMPLES["gpt_tied"]()
    getattr(model.tokens.weight, register)(lambda gradient: None)

    with (
        it.Pipeline(model, example=batch, loss=loss, ranks=2, microbatches=2) as pipe,
        pytest.raises(
            RunError, match=r"tokens\.weight has a gradient hook and is used in 2 places"
        ),
    ):
        pipe.step(batch)


def test_a_module_replaced_after_building_is_refused():
    """An adapter put in later would be ignored."""
    model = Stack(lambda _m, _l, x: x)
    pipe, x = built(model)
    model.layers[1] = nn.Linear(4, 4, dtype=torch.float64)

    with pipe, pytest.raises(RunError, match=r"module layers\.1 was replaced"):
        pipe.step(x)


def test_an_adapter_added_after_building_is_refused():
    """Its parameters would be nobody's."""
    model = Stack(lambda _m, _l, x: x)
    pipe, x = built(model)
    model.layers[1].register_parameter("extra", nn.Parameter(torch.zeros(4)))

    with pipe, pytest.raises(RunError, match="parameters were replaced, added or removed"):
        pipe.step(x)


def test_a_closed_pipeline_does_not_wait():
    """It says that it is closed."""
    pipe, x = built(Stack(lambda _m, _l, x: x))
    pipe.close()

    with pytest.raises(RunError, match="this pipeline is closed"):
        pipe.step(x)


def test_a_loss_with_parameters_is_refused():
    """Nobody would hold or step them."""

    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, output, batch):
            return F.mse_loss(output, batch) * self.weight

    x = torch.randn(6, 4)
    with pytest.raises(it.PipelineError, match=r"the loss has parameters of its own \(weight\)"):
        it.Pipeline(nn.Sequential(nn.Linear(4, 4)), example=x, loss=Weighted(), microbatches=2)


def test_building_leaves_the_buffers_of_a_loss_alone():
    """Building calls the loss, and that is not a step."""

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, output, batch):
            self.calls += 1
            return F.mse_loss(output, batch)

    loss, x = Counting(), torch.randn(6, 4)
    with it.Pipeline(nn.Sequential(nn.Linear(4, 4)), example=x, loss=loss, microbatches=3) as pipe:
        assert loss.calls == 0
        pipe.step(x)
    assert loss.calls == 3


def test_a_block_of_no_length_keeps_its_buffers():
    """A module's truth value is not whether there is one."""

    class Empty(nn.BatchNorm1d):
        def __len__(self):
            return 0

    model = nn.Sequential(nn.Linear(4, 4), Empty(4), nn.Linear(4, 4)).double()
    x = torch.randn(6, 4, dtype=torch.float64)

    assert it.check(model, x, square, ranks=2, microbatches=3, recompute="all").equal


class Scaling(nn.Linear):
    """Computes with a number of its own."""

    scale = 1.0

    def forward(self, x):
        return super().forward(x) * self.scale


class Twice(nn.Module):
    """Calls one block before and after another, so that two stages use its weights."""

    def __init__(self):
        super().__init__()
        self.shared = nn.ModuleList([Scaling(4, 4)])
        self.between = nn.Linear(4, 4)
        self.double()

    def forward(self, x):
        return self.shared[0](torch.tanh(self.between(self.shared[0](x))))


def test_a_number_on_a_block_that_is_called_twice():
    """All its uses follow what the user sets between steps, and what is added or removed."""
    model = Twice()
    pipe, x = built(model)
    with pipe:
        for scale in (1.0, 3.0, None, 2.0):
            if scale is None:
                del model.shared[0].scale
            else:
                model.shared[0].scale = scale
            expected = float(square(model(x), x).detach())
            assert float(pipe.step(x)) == pytest.approx(expected, rel=1e-12)
