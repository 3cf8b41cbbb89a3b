"""Ways out for what the automatic rules do not do: split points, blocks, stages by hand."""

import re

import pytest
import torch
from torch import nn

import intandem as it
from harness import pipeline
from intandem.equality import Splitting, one_process
from intandem.errors import CaptureError
from intandem.recorder.blocks import find_blocks
from models import SAMPLES, regression
from ways import Settling, by_hand, error, model_and_batch, square

# Blocks.


def test_a_module_that_decides_by_activations_is_refused_without_blocks():
    """The message has the line of the user's own forward and the ways out."""
    model, x = model_and_batch()
    with pytest.raises(CaptureError) as caught:
        it.check(model, x, square, ranks=2)
    message = str(caught.value)
    assert re.search(r"ways\.py:\d+", message), message


@pytest.mark.parametrize("blocks", [["one", "two"], [Settling]])
@pytest.mark.parametrize("ranks", [2, 3])
def test_named_blocks(blocks, ranks):
    """Kept whole by name or class, such a module has one process's numbers and draws."""
    model, x = model_and_batch()
    assert it.check(model, x, square, ranks=ranks, blocks=blocks, recompute="all").equal
    found = find_blocks(model, blocks)
    assert [found[model.one], found[model.two]] == ["one", "two"]


def test_containers_and_classes_mean_modules():
    """A container stands for its children, a class for all of its outermost modules."""
    model, _ = model_and_batch()
    assert find_blocks(model, ["head"]) == find_blocks(model)

    class Sequence(nn.Sequential):
        def forward(self, x):
            return super().forward(x) if float(x.detach().sum()) < 1e9 else x

    model.head = Sequence(*model.head).double()
    assert model.head not in find_blocks(model)
    assert find_blocks(model, ["head"])[model.head] == "head"
    assert find_blocks(model, [nn.Sequential])[model.head] == "head"


def test_blocks_that_are_not_there():
    """Unknown names and classes are refused with those near them."""
    model, x = model_and_batch()

    def refused(blocks, message, error=ValueError):
        with pytest.raises(error, match=message):
            it.Pipeline(model, example=x, loss=square, ranks=2, blocks=blocks)

    refused(["on"], r"^blocks: the model has no module 'on'; near it: one")
    refused([nn.Conv2d], r"^blocks: the model has no Conv2d; near it: ")
    refused([""], r"^blocks names the model itself \(Model\), which could not be cut then")
    refused("one", "^blocks is a str; expected a list of module names and classes", TypeError)
    refused([1], "^blocks has 1 in it; expected a list of module names and classes", TypeError)
    refused([int], "^blocks has <class 'int'> in it; expected a list", TypeError)


# Split points.


def test_split_points():
    """Stages begin with the named modules, containers among them; numbers are one process's."""
    sample = SAMPLES["gpt_untied"]()
    for points in (["blocks.1", "norm"], ["blocks", "head"]):
        assert it.check(*sample, ranks=3, microbatches=2, split_points=points).equal
        with pipeline(sample, ranks=3, microbatches=2, split_points=points) as pipe:
            pipe.step(sample.batch)
            stages = [part.calls for part in pipe._assembly.example.cuts]
            calls = pipe._assembly.example.graph.calls
        first = [next(calls[i].name for i in stage if calls[i].parameters) for stage in stages]
        assert first[1:] == ["blocks.0" if p == "blocks" else p for p in points]


class Prefixed(nn.Module):
    """Begins with glue that uses a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(6))
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        return self.layer(x * self.token)


class WithPrefix(nn.Module):
    """Two modules that begin with glue, outside of containers."""

    def __init__(self):
        super().__init__()
        self.a = Prefixed()
        self.b = Prefixed()

    def forward(self, x):
        return self.b(self.a(x))


def test_a_split_point_may_begin_with_glue():
    """Glue that uses the module's own parameter is its first call."""
    sample = regression(WithPrefix().double(), 6)
    assert it.check(*sample, ranks=2, split_points=["b"]).equal
    with pipeline(sample, ranks=2, split_points=["b"]) as pipe:
        pipe.step(sample.batch)
        first, second = pipe.report_value().stages
    assert (first.num_parameters, second.num_parameters) == (48, 48)


def test_split_points_that_cannot_be():
    """The message says why a stage cannot begin there, and what is near."""
    sample = SAMPLES["gpt_untied"]()

    def refused(points, why, ranks=2):
        with (
            pytest.raises(CaptureError, match=why),
            pipeline(sample, ranks=ranks, microbatches=2, split_points=points),
        ):
            pass

    inner = next(n for n, _ in sample.model.blocks[1].named_children())
    refused(["block.1"], r"'block\.1' there: it is not called, .*; near it: blocks\.1")
    refused([f"blocks.1.{inner}"], "it lies inside blocks.1, which is kept whole")
    refused(["tokens"], "the first stage begins with it")
    refused(["norm", "blocks.1"], "it is not called after norm; name them in the order", ranks=3)
    with pytest.raises(ValueError, match="stages and split_points are the same thing"):
        it.Pipeline(
            sample.model, example=sample.batch, loss=sample.loss, stages=["norm"],
            split_points=["norm"],
        )  # fmt: skip
    with pytest.raises(TypeError, match="split_points is a str; expected a list of module names"):
        it.Pipeline(sample.model, example=sample.batch, loss=sample.loss, split_points="norm")


# Stages by hand.


@pytest.mark.parametrize("recompute", ["none", "all"])
def test_stages_by_hand(recompute):
    """Tensors, tuples and dictionaries go from stage to stage, with one process's numbers."""
    stages, batch = by_hand()
    assert it.check(stages, batch, error, ranks=3, microbatches=3, recompute=recompute).equal
    with it.Pipeline(stages, example=batch, loss=error, microbatches=3) as pipe:
        assert pipe.num_ranks == 3
        pipe.step(batch)
        names = list(pipe.state_dict())
        assert [row.num_parameters for row in pipe.report_value().stages] == [42, 12, 21]
    assert names[:2] == ["0.linear.weight", "0.linear.bias"]
    assert stages[0].linear.weight.grad is not None


def test_two_stages_by_hand_of_sequences():
    """A sequence is kept whole too: it is cut nowhere but at its end."""
    x = torch.randn(5, 4, dtype=torch.float64)
    stages = [nn.Sequential(nn.Linear(4, 4), nn.Tanh()).double() for _ in range(2)]
    assert it.check(stages, x, square, ranks=2).equal
    with it.Pipeline(stages, example=x, loss=square, ranks=2) as pipe:
        pipe.step(x)
        assert [row.num_parameters for row in pipe.report_value().stages] == [20, 20]


def test_stages_by_hand_that_cannot_be():
    """Other numbers than the schedule's, and what would say the same twice, are refused."""
    stages, batch = by_hand()

    def refused(kind, match, given=stages, **kwargs):
        with pytest.raises(kind, match=match):
            it.Pipeline(given, example=batch, loss=error, microbatches=2, **kwargs)

    refused(
        CaptureError,
        "^model is a list of 3 stages, and the schedule has 2; use ranks=3, or give as many",
        ranks=2,
    )
    refused(CaptureError, "^model is a list of 3 stages, and the schedule has 5; use r", ranks=5)
    refused(ValueError, "^model is a list of stages, which are cut where they end", blocks=["0"])
    refused(ValueError, "^model is a list of stages", split_points=["1", "2"])
    refused(ValueError, "^model is an empty list; expected an nn.Module, or a list", given=[])
    refused(
        TypeError, "^stage 1 of model is a function; expected an nn", given=[stages[0], by_hand]
    )
    plain = [nn.Linear(4, 4).double(), nn.Tanh(), nn.Linear(4, 4).double()]
    x = torch.randn(5, 4, dtype=torch.float64)
    with pytest.raises(CaptureError, match=r"^stage 1 of the list cannot be a stage"):
        it.Pipeline(plain, example=x, loss=square)


# What Hugging Face says about pipelines.


@pytest.mark.parametrize("name", ["llama_tied", "llama_untied"])
def test_the_modules_of_a_pipeline_plan_are_found(name):
    """``base_model_pp_plan`` names what is kept whole anyway; it can be given as blocks as well."""
    model, batch, loss = SAMPLES[name]()
    plan = [f"model.{key}" for key in model.config.base_model_pp_plan]
    assert plan == ["model.embed_tokens", "model.layers", "model.norm"]
    found = find_blocks(model)
    for key in plan:
        module = model.get_submodule(key)
        children = list(module.children()) if isinstance(module, nn.ModuleList) else [module]
        assert all(child in found for child in children)
    assert find_blocks(model, plan) == found
    assert it.check(model, batch, loss, ranks=2, microbatches=2, blocks=plan).equal


# Draws and recordings use the same blocks.


def test_the_witness_uses_the_same_blocks():
    """Draws are keyed by the names of blocks, so the witness has to know them."""
    model, x = model_and_batch()
    same = one_process(model, x, square, Splitting(2, blocks=[Settling]))
    other = one_process(model, x, square, Splitting(2))
    assert same.loss != other.loss
    with it.Pipeline(
        model, example=x, loss=square, ranks=2, microbatches=2, blocks=[Settling]
    ) as pipe:
        assert float(pipe.step(x)) == pytest.approx(same.loss, rel=1e-12)
        pipe.predict(x)
        pipe.step(x[:4])


def test_capture_takes_blocks():
    """``capture`` shows them as blocks."""
    model, x = model_and_batch()
    names = [call.name for call in it.capture(model, x, blocks=[Settling]).calls]
    assert names == ["first", "one", "add", "two", "add", "norm", "head.0", "head.1", "head.2"]
