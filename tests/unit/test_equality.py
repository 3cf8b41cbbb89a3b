"""A pipeline has one process's numbers: loss, every gradient, every buffer, in float64."""

import copy
import math
import re
from dataclasses import replace

import pytest
import torch
from order_samples import sched
from torch import nn
from torch.nn import functional as F

import intandem as it
from harness import (
    TOLERANCE,
    gradients,
    in_tandem,
    max_stages,
    pipeline,
    plain,
    relative_error,
    repeatable_cuts,
    same_bits,
    twin,
)
from intandem.equality import Splitting, compare, numbers_of, one_process
from intandem.ir import Placement
from models import RANDOM, SAMPLES, Sample

pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")

SCHEDULES = ("naive", "gpipe", "1f1b")
"""Every kind of model runs under these; every schedule runs in ``test_equality_schedules``."""
RECOMPUTE = ("none", "all")
MICROBATCHES = range(1, 10)
"""The batches have 7 rows, so 2..6 do not divide them and 8 and 9 are more than there are."""

FEW = [(1, "gpipe", "all", 3), (2, "1f1b", "none", 4), (3, "naive", "none", 5),
       (4, "1f1b", "all", 2), (4, "gpipe", "none", 9)]  # fmt: skip


def assert_equal(name, ranks, schedule, recompute, microbatches):
    """Hold a pipeline against the plain model; fewer stages if the model has fewer parts."""
    ranks = min(ranks, max_stages(name))
    with repeatable_cuts(seed=microbatches):
        found = in_tandem(
            SAMPLES[name](),
            ranks=ranks,
            schedule=schedule,
            recompute=recompute,
            microbatches=microbatches,
        )
    equality = compare(found, plain(name, microbatches))
    assert equality.equal, (equality.loss_error, equality.worst())


@pytest.mark.parametrize(("ranks", "schedule", "recompute", "microbatches"), FEW)
@pytest.mark.parametrize("name", SAMPLES)
def test_every_kind_of_model(name, ranks, schedule, recompute, microbatches):
    """Every kind of model gives one process's loss, gradients and buffers."""
    assert_equal(name, ranks, schedule, recompute, microbatches)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("name", SAMPLES)
def test_whole_matrix(name, ranks, schedule, recompute):
    """The same at every number of ranks, schedule, recomputation and 1 to 9 micro-batches."""
    if ranks > max_stages(name):
        pytest.skip(f"{name} has {max_stages(name)} parts")
    for microbatches in MICROBATCHES:
        assert_equal(name, ranks, schedule, recompute, microbatches)


def test_measured_cuts():
    """Cuts by measured costs give the same numbers, and so does ``check``, on a model it leaves."""
    sample = SAMPLES["gpt_tied"]()
    for ranks in (1, 2, 4):
        assert it.check(*sample, ranks=ranks, microbatches=3).equal
    assert not any(p.grad is not None for p in sample.model.parameters())


def test_check_sees_a_wrong_gradient():
    """``check`` of numbers that differ in one gradient, buffer or the loss says which and fails."""
    expected = plain("batch_norm", 2)
    gradients = dict(expected.gradients)
    gradients["head.bias"] = gradients["head.bias"] * (1 + 1e-9)
    found = compare(replace(expected, gradients=gradients), expected)
    assert not found.equal
    assert found.worst(1)[0][0] == "head.bias"
    assert found.max_gradient_error == pytest.approx(1e-9)
    buffers = {name: buffer + 1 for name, buffer in expected.buffers.items()}
    assert not compare(replace(expected, buffers=buffers), expected).equal
    assert not compare(replace(expected, loss=expected.loss * (1 + 1e-9)), expected).equal
    missing = dict.fromkeys(expected.gradients)
    assert compare(replace(expected, gradients=missing), expected).max_gradient_error == math.inf


def normalised_twice(factor=1.0):
    """Numbers of normalisations one after the other: the second's mean is rounding alone."""
    torch.manual_seed(3)
    layers = (nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1, bias=False))
    model = nn.Sequential(*layers, nn.BatchNorm2d(8)).double()
    with torch.no_grad():
        model[0].weight.mul_(factor)
    x = torch.randn(6, 3, 4, 4, dtype=torch.float64)
    return one_process(model, x, lambda output, batch: (output * batch[:, :1]).mean(), Splitting(2))


def test_a_mean_that_is_nothing_but_rounding():
    """It may be wholly other rounding; anything more than rounding is an error."""
    expected, found = normalised_twice(), normalised_twice(1 + 1e-15)
    mean, other = (numbers.buffers["3.running_mean"] for numbers in (expected, found))
    assert relative_error({"mean": other}, {"mean": mean}) > 0.1
    assert compare(found, expected).equal
    buffers = {**expected.buffers, "3.running_mean": mean + 1e-9}
    assert compare(replace(expected, buffers=buffers), expected).max_buffer_error > 1e-7


INDEPENDENT_OF_ROWS = [
    name
    for name in SAMPLES
    if name not in RANDOM
    and name
    not in {
        "batch_norm",
        "batch_norm_cumulative",
        "buffers_in_glue",
        "counting_blocks",
        "replaced_buffers",
        "guarded_mask",
        "in_place_glue",
        "llama_untied",
    }
]
"""Samples whose rows do not see each other, so that a batch may be split anyhow, in float64."""


def whole_batch(sample):
    """Loss and gradients of one plain call on the whole batch; nothing of the library in it."""
    model, batch, loss = sample
    if loss is None:
        output = model(**batch) if isinstance(batch, dict) else model(batch)
        value = output["loss"]
    elif isinstance(batch, dict):
        value = loss(model(batch["ids"]), batch)
    else:
        value = loss(model(*batch[:-1]), batch)
    if isinstance(value, it.LossSum):
        value = value.sum / value.count
    value.backward()
    return float(value.detach()), gradients(model)


@pytest.mark.parametrize("microbatches", [1, 4, 7])
@pytest.mark.parametrize("name", INDEPENDENT_OF_ROWS)
def test_whole_batch_at_once(name, microbatches):
    """Micro-batches add up to what one call on the whole batch gives; none is left out."""
    loss, expected = whole_batch(SAMPLES[name]())
    sample = SAMPLES[name]()
    with repeatable_cuts():
        found = in_tandem(sample, ranks=min(3, max_stages(name)), microbatches=microbatches)
    assert found.loss == pytest.approx(loss, rel=TOLERANCE, abs=0)
    assert relative_error(found.gradients, expected) <= TOLERANCE


# Steps.


def plain_step(sample, microbatches, step=0, batch=None):
    """One plain step, added to ``.grad``."""
    batch = sample.batch if batch is None else batch
    return one_process(sample.model, batch, sample.loss, Splitting(microbatches), step=step)


SEVERAL = ["gpt_tied", "batch_norm", "dropout_in_blocks", "shared_block", "loss_sum_padded"]


@pytest.mark.parametrize("name", SEVERAL)
def test_steps_accumulate_and_evaluation_changes_nothing(name):
    """Two steps add up in ``.grad``; evaluation and prediction between them change nothing."""
    ours, theirs = SAMPLES[name](), SAMPLES[name]()
    with pipeline(ours, ranks=3, microbatches=3) as pipe:
        pipe.step(ours.batch)
        before = copy.deepcopy(ours.model.state_dict()), gradients(ours.model)
        random_state = torch.get_rng_state()
        pipe.evaluate(ours.batch)
        pipe.predict(ours.batch)
        assert torch.equal(random_state, torch.get_rng_state())
        assert same_bits(ours.model.state_dict(), before[0]) == []
        assert same_bits(gradients(ours.model), before[1]) == []
        assert ours.model.training
        loss = float(pipe.step(ours.batch))
    plain_step(theirs, 3)
    expected = plain_step(theirs, 3, step=1)
    equality = compare(numbers_of(ours.model, loss), expected)
    assert equality.equal, (equality.loss_error, equality.worst())


@pytest.mark.parametrize("name", [*SEVERAL, "dropout_in_glue", "lstm_dropout", "gpt2_dropout"])
def test_a_step_leaves_the_random_state(name):
    """Recording, stepping and evaluating draw nothing from the process's random state."""
    sample = SAMPLES[name]()
    before = torch.get_rng_state()
    with pipeline(sample, ranks=2, microbatches=2) as pipe:
        pipe.step(sample.batch)
        pipe.evaluate(sample.batch)
    assert torch.equal(before, torch.get_rng_state())


def test_draws_do_not_depend_on_the_random_state():
    """The seed of ``Options`` decides the draws; the process's own seed does not."""
    losses = []
    for seed, own in ((0, 1), (0, 2), (5, 1)):
        sample = SAMPLES["dropout_in_glue"]()
        torch.manual_seed(own)
        options = it.Options(seed=seed, threads_per_rank=1)
        with pipeline(sample, ranks=2, microbatches=2, options=options) as pipe:
            losses.append([float(pipe.step(sample.batch)) for _ in range(2)])
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]
    assert losses[0][0] != losses[0][1]


@pytest.mark.parametrize("name", ["gpt_tied", "batch_norm", "dropout_in_blocks", "gpt2_dropout"])
def test_adamw_steps(name):
    """Several AdamW steps with clipping and changing batches give the plain model's parameters."""
    ours, theirs = SAMPLES[name](), SAMPLES[name]()
    others = [SAMPLES[name](rows).batch for rows in (5, 7, 4)]
    optimizer = torch.optim.AdamW(theirs.model.parameters(), lr=0.01)
    for step, batch in enumerate(others):
        plain_step(theirs, 3, step, batch)
        torch.nn.utils.clip_grad_norm_(theirs.model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    with pipeline(ours, ranks=3, microbatches=3) as pipe:
        optimizer = torch.optim.AdamW(pipe.parameters(), lr=0.01)
        for batch in others:
            pipe.step(batch)
            pipe.clip_grad_norm_(0.5)
            optimizer.step()
            optimizer.zero_grad()
    found, expected = ours.model.state_dict(), theirs.model.state_dict()
    floats = {n: t for n, t in expected.items() if t.is_floating_point()}
    assert relative_error({n: found[n] for n in floats}, floats) <= 1e-9
    assert all(torch.equal(found[n], expected[n]) for n in expected if n not in floats)


@pytest.mark.parametrize("name", ["gpt_tied", "shared_block", "frozen_middle", "llama_tied"])
def test_gradient_norm(name):
    """``clip_grad_norm_`` is torch's on the plain model: tied weights once, all stages together."""
    ours, theirs = SAMPLES[name](), SAMPLES[name]()
    plain_step(theirs, 3)
    expected = torch.nn.utils.clip_grad_norm_(theirs.model.parameters(), 0.01)
    with pipeline(ours, ranks=3, microbatches=3) as pipe:
        pipe.step(ours.batch)
        assert pipe.clip_grad_norm_(1e9) == pytest.approx(float(expected), rel=TOLERANCE)
        before = gradients(ours.model)
        pipe.clip_grad_norm_(1e9)
        assert same_bits(gradients(ours.model), before) == []
        pipe.clip_grad_norm_(0.01)
    assert relative_error(gradients(ours.model), gradients(theirs.model)) <= TOLERANCE


def test_zero_grad_starts_anew():
    """After ``zero_grad`` a step of the same number of rows gives that step's gradients alone."""
    ours, theirs = SAMPLES["gpt_tied"](), SAMPLES["gpt_tied"]()
    plain_step(theirs, 4, step=1)
    for set_to_none in (True, False):
        fresh = twin(ours)
        with pipeline(fresh, ranks=2, microbatches=4) as pipe:
            optimizer = torch.optim.SGD(pipe.parameters(), lr=0.1)
            pipe.step(fresh.batch)
            optimizer.zero_grad(set_to_none=set_to_none)
            pipe.step(fresh.batch)
        assert relative_error(gradients(fresh.model), gradients(theirs.model)) <= TOLERANCE


# Evaluation and prediction.

EVALUATED = ["gpt_tied", "batch_norm", "dropout_in_blocks", "dropout_in_glue", "two_towers", "unet"]


@pytest.mark.parametrize("rows", [1, 6, 7])
@pytest.mark.parametrize("name", [*EVALUATED, "loss_sum_padded", "llama_tied", "gpt2_dropout"])
def test_evaluate(name, rows):
    """``evaluate`` gives the plain model's loss on the whole batch in evaluation mode."""
    ours, theirs = SAMPLES[name](rows), SAMPLES[name](rows)
    theirs.model.eval()
    loss, _ = whole_batch(theirs)
    with pipeline(ours, ranks=3, microbatches=4) as pipe:
        assert pipe.evaluate(ours.batch) == pytest.approx(loss, rel=TOLERANCE, abs=0)
    assert not any(p.grad is not None for p in ours.model.parameters())


@pytest.mark.parametrize("rows", [1, 6, 7])
@pytest.mark.parametrize("name", EVALUATED)
def test_predict(name, rows):
    """``predict`` gives the plain model's outputs in order: as many rows as the batch has."""
    ours, theirs = SAMPLES[name](rows), SAMPLES[name](rows)
    theirs.model.eval()
    with torch.no_grad():
        expected = theirs.model(*theirs.batch[:-1])
    with pipeline(ours, ranks=3, microbatches=4) as pipe:
        found = pipe.predict(ours.batch)
    assert len(found) == rows
    torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_predict_structures():
    """Outputs keep their dictionaries, dataclasses and order of rows."""
    ours, theirs = SAMPLES["dataclass_output"](), SAMPLES["dataclass_output"]()
    with torch.no_grad():
        expected = theirs.model.eval()(theirs.batch[0])
    with pipeline(ours, ranks=2, microbatches=3) as pipe:
        found = pipe.predict(ours.batch)
    assert type(found) is type(expected)
    torch.testing.assert_close(found.hidden, expected.hidden)
    assert torch.equal(found.parts["input"], theirs.batch[0])
    assert found.loss is None


def test_predict_before_and_after_steps():
    """The order of training, evaluation and prediction does not matter."""
    sample = SAMPLES["batch_norm"]()
    with pipeline(sample, ranks=2, microbatches=3) as pipe:
        first = pipe.predict(sample.batch)
        pipe.step(sample.batch)
        second = pipe.predict(sample.batch)
    with torch.no_grad():
        expected = sample.model.eval()(sample.batch[0])
    assert not torch.equal(first, second)
    torch.testing.assert_close(second, expected, rtol=TOLERANCE, atol=TOLERANCE)


# State.


@pytest.mark.parametrize("name", ["gpt_tied", "batch_norm", "llama_tied", "parameter_in_glue"])
def test_state_dict_round_trip(name):
    """A state loads into another number of ranks and into the plain model, names unchanged."""
    ours, other, plain_model = SAMPLES[name](), SAMPLES[name](), SAMPLES[name]().model
    with pipeline(ours, ranks=3, microbatches=3) as pipe:
        optimizer = torch.optim.SGD(pipe.parameters(), lr=0.1)
        pipe.step(ours.batch)
        optimizer.step()
        state = pipe.state_dict()
        kept = copy.deepcopy(state)
        pipe.step(ours.batch)
        optimizer.step()
    assert same_bits(state, kept) == []
    assert list(state) == list(plain_model.state_dict())
    plain_model.load_state_dict(state)
    with pipeline(other, ranks=2, microbatches=3) as pipe:
        pipe.load_state_dict(state)
        assert same_bits(pipe.state_dict(), plain_model.state_dict()) == []
        found = float(pipe.step(other.batch))
    expected = plain_step(other._replace(model=plain_model), 3)
    assert compare(numbers_of(other.model, found), expected).equal


def test_load_state_dict_refuses_another_models():
    """A state with other names or shapes is refused, naming all of them, and nothing changes."""
    sample = SAMPLES["mlp"]()
    with pipeline(sample, ranks=2, microbatches=2) as pipe:
        state = pipe.state_dict()
        state["extra"] = state.pop("0.0.weight")
        state["1.0.bias"] = torch.zeros(3)
        before = copy.deepcopy(sample.model.state_dict())
        expected = "missing 0.0.weight; unknown extra; 1.0.bias is (3,), expected (6,)"
        with pytest.raises(ValueError, match=re.escape(expected)):
            pipe.load_state_dict(state)
    assert same_bits(sample.model.state_dict(), before) == []


# Micro-batches.


def test_micro_batches_as_given():
    """A list of batches is taken for micro-batches as it is, whatever ``microbatches`` says."""
    x, y = SAMPLES["mlp"]().batch
    parts = [(x[:1], y[:1]), (x[1:5], y[1:5]), (x[5:], y[5:])]
    loss, expected = whole_batch(SAMPLES["mlp"]())
    sample = SAMPLES["mlp"]()
    with pipeline(sample, ranks=2, microbatches=4) as pipe:
        found = pipe.step(parts)
    assert len(found.microbatches) == 3
    assert float(found) == pytest.approx(loss, rel=TOLERANCE)
    assert relative_error(gradients(sample.model), expected) <= TOLERANCE


class Biased(nn.Module):
    """Takes a table for all rows, and vectors whose rows are on dim 1."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, x, table, columns):
        for block in self.blocks:
            x = torch.tanh(block(x)) + table.sum(0)
        return x + columns.T


def test_split_by_name():
    """``split`` names leaves that have their rows elsewhere, or go whole to each micro-batch."""
    x = torch.randn(7, 6, dtype=torch.float64)
    batch = {"x": x, "table": x[:2], "columns": x.T.contiguous()}
    ours = Biased().double()
    theirs = copy.deepcopy(ours)
    theirs(**batch).square().mean().backward()
    sample = Sample(ours, batch, mean_square)
    split = {"table": None, "columns": 1}
    with pipeline(sample, ranks=3, microbatches=3, split=split) as pipe:
        pipe.step(batch)
    assert relative_error(gradients(ours), gradients(theirs)) <= TOLERANCE


def mean_square(output, batch):
    del batch
    return output.square().mean()


def counted_mean(logits, batch):
    return F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=-100)


def test_count():
    """``count`` weighs means over other things than rows; a micro-batch of count 0 is nothing."""
    ours, theirs = SAMPLES["loss_sum_padded"](), SAMPLES["loss_sum_padded"]()
    loss, expected = whole_batch(theirs)
    ours = ours._replace(loss=counted_mean)
    with pipeline(
        ours, ranks=2, microbatches=7, count=lambda batch: (batch["labels"] != -100).sum()
    ) as pipe:
        found = pipe.step(ours.batch)
    assert any(math.isnan(x) for x in found.microbatches) is False
    assert float(found) == pytest.approx(loss, rel=TOLERANCE)
    assert relative_error(gradients(ours.model), expected) <= TOLERANCE


# Schedules and stages of the user's own.


@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("name", ["mlp", "gpt_tied", "unet", "batch_norm", "frozen_first"])
def test_split_backwards(name, recompute):
    """A schedule of the user's own with I and W actions gives the same numbers."""
    schedule = sched(
        "0F0 0F1 0F2 0I0 0I1 0W0 0I2 0W2 0W1",
        "1F0 1I0 1F1 1I1 1W1 1F2 1W0 1I2 1W2",
        microbatches=3,
    )
    with repeatable_cuts():
        found = in_tandem(SAMPLES[name](), ranks=2, schedule=schedule, recompute=recompute)
    equality = compare(found, plain(name, 3))
    assert equality.equal, equality.worst()


def test_several_stages_on_a_rank():
    """A schedule may give each rank several stages, in any placement."""
    placement = Placement((0, 1, 1, 0))
    schedule = sched(
        "0F0 0F1 3F0 3B0 3F1 3B1 0B0 0B1",
        "1F0 2F0 1F1 2F1 2B0 1B0 2B1 1B1",
        microbatches=2,
        placement=placement,
    )
    for name in ("mlp", "gpt_tied", "unet", "fan_out", "dropout_in_blocks", "batch_norm"):
        with repeatable_cuts():
            found = in_tandem(SAMPLES[name](), ranks=2, schedule=schedule)
        equality = compare(found, plain(name, 2))
        assert equality.equal, (name, equality.worst())


@pytest.mark.parametrize(
    ("ways", "ranks"),
    [
        ({"ranks": 2, "schedule": "1f1b"}, [(0,), (1,)]),
        ({"ranks": 2, "schedule": "chimera"}, [(0, 1), (1, 0)]),
        ({"ranks": 4, "schedule": "gpipe", "replicas": 2}, [(0, 1), (2, 3)]),
    ],
)
def test_ranks_of_stages_in_the_report(ways, ranks):
    """Every rank that holds a stage is named, which are those that have run it."""
    sample = SAMPLES["mlp"]()
    with pipeline(sample, microbatches=4, **ways) as pipe:
        pipe.step(sample.batch)
        rows, spans = pipe.report_value().stages, pipe.timeline().spans
    assert [row.ranks for row in rows] == ranks
    for row in rows:
        assert set(row.ranks) == {s.rank for s in spans if s.action.stage == row.stage}


def test_stages_by_name():
    """``stages`` names the module that each stage after the first begins with."""
    sample = SAMPLES["gpt_tied"]()
    with pipeline(sample, ranks=3, microbatches=2, stages=["blocks.1", "norm"]) as pipe:
        loss = float(pipe.step(sample.batch))
        rows = pipe.report_value().stages
    assert [row.blocks for row in rows] == [
        "tokens … blocks.0",
        "blocks.1 … blocks.2",
        "norm … head",
    ]
    assert compare(numbers_of(sample.model, loss), plain("gpt_tied", 2)).equal
