"""Stages held by several ranks have one process's numbers: data parallelism and two directions."""

import copy

import pytest
import torch
from order_samples import sched
from torch import nn

import intandem as it
from harness import (
    TOLERANCE,
    gradients,
    in_tandem,
    pipeline,
    plain,
    relative_error,
    repeatable_cuts,
)
from intandem.equality import Splitting, bisect, compare, numbers_of, one_process
from intandem.errors import CaptureError, RunError, ScheduleError
from intandem.ir import Placement
from intandem.rules import verify
from intandem.schedules import build_schedule, schedule_names
from intandem.schedules.replication import replicated
from models import SAMPLES

pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")

UPDATING = {
    "batch_norm",
    "batch_norm_cumulative",
    "counting_blocks",
    "replaced_buffers",
    "buffers_in_glue",
}
"""Samples that update buffers."""

BOTH_WAYS = sched(
    "0F0 1F1 1B1 0B0",
    "0F1 1F0 1B0 0B1",
    microbatches=2,
    placement=Placement.bidirectional(2),
)


def assert_equal(name, microbatches, **kwargs):
    """Hold a pipeline against the plain model."""
    with repeatable_cuts():
        found = in_tandem(SAMPLES[name](), microbatches=microbatches, **kwargs)
    equality = compare(found, plain(name, microbatches))
    assert equality.equal, (equality.loss_error, equality.worst())


@pytest.mark.parametrize(("ranks", "replicas", "microbatches"), [(2, 2, 3), (4, 2, 4), (6, 3, 5)])
@pytest.mark.parametrize("name", [name for name in SAMPLES if name not in UPDATING])
def test_data_parallel(name, ranks, replicas, microbatches):
    """Replicas of one and two stages, with even and uneven shares of the micro-batches."""
    assert_equal(name, microbatches, ranks=ranks, replicas=replicas)


@pytest.mark.parametrize("recompute", ["none", "all"])
@pytest.mark.parametrize("name", [name for name in SAMPLES if name not in UPDATING])
def test_two_directions(name, recompute):
    """Each rank holds a stage of either direction; gradients of both holders are added up."""
    assert_equal(name, 2, ranks=2, schedule=BOTH_WAYS, recompute=recompute)


@pytest.mark.parametrize("name", ["gpt_tied", "loss_sum_padded", "dropout_in_blocks"])
def test_steps_accumulate(name):
    """Two steps add up in ``.grad``; evaluation and prediction between them change nothing."""
    ours, theirs = SAMPLES[name](), SAMPLES[name]()
    with pipeline(ours, ranks=4, replicas=2, microbatches=5) as pipe:
        pipe.step(ours.batch)
        pipe.evaluate(ours.batch)
        pipe.predict(ours.batch)
        loss = float(pipe.step(ours.batch))
        norm = pipe.clip_grad_norm_(1e9)
    one_process(theirs.model, theirs.batch, theirs.loss, Splitting(5))
    expected = one_process(theirs.model, theirs.batch, theirs.loss, Splitting(5), step=1)
    assert compare(numbers_of(ours.model, loss), expected).equal
    whole = torch.nn.utils.clip_grad_norm_(theirs.model.parameters(), 1e9)
    assert norm == pytest.approx(float(whole), rel=TOLERANCE)


@pytest.mark.parametrize("rows", [1, 3, 7])
@pytest.mark.parametrize("name", ["gpt_tied", "dropout_in_blocks", "two_towers"])
def test_any_number_of_rows(name, rows):
    """Fewer rows than replicas or micro-batches: loss, gradients and outputs are the plain ones."""
    ours, theirs = SAMPLES[name](rows), SAMPLES[name](rows)
    expected = one_process(theirs.model, theirs.batch, theirs.loss, Splitting(6))
    with pipeline(ours, ranks=4, replicas=2, microbatches=6) as pipe:
        loss = float(pipe.step(ours.batch))
        outputs = pipe.predict(ours.batch)
        value = float(pipe.evaluate(ours.batch))
    assert compare(numbers_of(ours.model, loss), expected).equal
    theirs.model.eval()
    with torch.no_grad():
        plain_outputs = theirs.model(*theirs.batch[:-1])
        plain_value = theirs.loss(plain_outputs, theirs.batch)
    torch.testing.assert_close(outputs, plain_outputs, rtol=TOLERANCE, atol=TOLERANCE)
    assert value == pytest.approx(float(plain_value), rel=TOLERANCE)


def test_adamw_steps():
    """Three AdamW steps with clipping give the plain model's parameters."""
    ours, theirs = SAMPLES["gpt_tied"](), SAMPLES["gpt_tied"]()
    plainly = torch.optim.AdamW(theirs.model.parameters(), lr=0.01)
    with pipeline(ours, ranks=4, replicas=2, microbatches=4) as pipe:
        optimizer = torch.optim.AdamW(pipe.parameters(), lr=0.01)
        for step in range(3):
            pipe.step(ours.batch)
            pipe.clip_grad_norm_(0.5)
            one_process(theirs.model, theirs.batch, theirs.loss, Splitting(4), step=step)
            torch.nn.utils.clip_grad_norm_(theirs.model.parameters(), 0.5)
            for one in (optimizer, plainly):
                one.step()
                one.zero_grad()
    assert relative_error(ours.model.state_dict(), theirs.model.state_dict()) <= 1e-9


def test_metrics():
    """Metrics of all replicas are weighed together, each by its own count."""
    x = torch.randn(7, 6, dtype=torch.float64)
    y = torch.randn(7, 6, dtype=torch.float64)

    def loss(output, batch):
        squares = (output - batch[1]) ** 2
        positive = batch[0] > 0
        counted = it.LossSum(squares[positive].sum(), positive.sum())
        return {"loss": counted, "rows": squares.mean()}

    model = SAMPLES["mlp"]().model
    squares = (model(x) - y) ** 2
    with it.Pipeline(model, example=(x, y), loss=loss, ranks=4, replicas=2, microbatches=5) as pipe:
        found = pipe.step((x, y))
    expected = squares[x > 0].mean()
    assert float(found) == pytest.approx(float(expected.detach()), rel=TOLERANCE)
    assert found.metrics["rows"] == pytest.approx(float(squares.detach().mean()), rel=TOLERANCE)
    expected.backward()
    whole = copy.deepcopy(gradients(model))
    model.zero_grad()
    ((model(x) - y) ** 2)[x > 0].mean().backward()
    assert relative_error({n: g / 2 for n, g in whole.items()}, gradients(model)) <= TOLERANCE


@pytest.mark.parametrize("name", sorted(UPDATING))
def test_updated_buffers_are_refused(name):
    """Replicas would each update their own copy of a buffer, for their own micro-batches."""
    with (
        pytest.raises(CaptureError, match=r"would be updated by several ranks.*replicas=1"),
        pipeline(SAMPLES[name](), ranks=2, replicas=2),
    ):
        pass


def test_frozen_buffers_are_not_refused():
    """BatchNorm in evaluation mode updates nothing."""
    ours, theirs = SAMPLES["batch_norm"](), SAMPLES["batch_norm"]()
    for sample in (ours, theirs):
        sample.model.eval()
    expected = one_process(theirs.model, theirs.batch, theirs.loss, Splitting(4))
    with pipeline(ours, ranks=4, replicas=2, microbatches=4) as pipe:
        loss = float(pipe.step(ours.batch))
        assert compare(numbers_of(ours.model, loss), expected).equal
        ours.model.train()
        with pytest.raises(CaptureError, match="would be updated by several ranks"):
            pipe.step(ours.batch)


class Returning(nn.Module):
    """Returns a parameter as it is."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x, self.scale


def test_a_parameter_as_output():
    """A parameter that is returned and used by the loss alone has the gradient of all replicas."""
    x = torch.randn(4, 6, dtype=torch.float64)

    def loss(output, _):
        return (output[0] * output[1]).mean()

    model = Returning().double()
    loss(model(x), None).backward()
    expected = copy.deepcopy(gradients(model))
    model.zero_grad()
    with it.Pipeline(model, example=x, loss=loss, ranks=4, replicas=2, microbatches=4) as pipe:
        pipe.step(x)
    assert relative_error(gradients(model), expected) <= TOLERANCE


class Scratch(nn.Module):
    """Without parameters; leaves a tensor in an attribute and reads it again."""

    def forward(self, x):
        self.kept = x * 2
        y = x
        for _ in range(30):
            y = torch.tanh(y)
        return self.kept + y


class Counter(nn.Module):
    """Divides by how often it has been called."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.linear(x) / self.calls


def layers_with(kind):
    made = [[nn.Linear(6, 6), kind()] for _ in range(3)]
    return nn.Sequential(*[layer for pair in made for layer in pair]).double()


def square(output, _):
    return output.square().mean()


def test_replicas_share_no_attributes():
    """A block that leaves something in an attribute has one for each replica."""
    x = torch.randn(16, 6, dtype=torch.float64)
    model = layers_with(Scratch)
    with torch.no_grad():
        expected = float(square(model(x), x))
    with it.Pipeline(model, example=x, loss=square, ranks=2, replicas=2, microbatches=8) as pipe:
        found = [float(pipe.evaluate(x)) for _ in range(20)]
        pipe.step(x)
    assert found == pytest.approx([expected] * 20, rel=TOLERANCE)


def test_state_in_attributes_is_refused():
    """A counter would count each replica's micro-batches alone."""
    x = torch.randn(8, 6, dtype=torch.float64)
    for kwargs in ({"ranks": 2, "replicas": 2}, {"ranks": 2, "schedule": "chimera"}):
        with pytest.raises(CaptureError, match="something is carried from run to run"):
            it.Pipeline(layers_with(Counter), example=x, loss=square, **kwargs)
    assert it.check(layers_with(Counter), x, square, ranks=2).equal


def test_what_replicas_cannot_do():
    """Losses of the whole batch, uneven ranks and hooks on gradients are refused in words."""
    sample = SAMPLES["mlp"]()
    whole = sample._replace(loss=it.WholeBatchLoss(sample.loss))
    with pytest.raises(ScheduleError, match="outputs of every micro-batch on one rank"):
        it.Pipeline(*whole[:1], example=whole.batch, loss=whole.loss, ranks=2, replicas=2)
    with pytest.raises(ScheduleError, match="each of the 2 replicas has 3 ranks: chimera needs an"):
        it.Pipeline(
            sample.model, example=sample.batch, loss=sample.loss, ranks=6, replicas=2,
            schedule="chimera",
        )  # fmt: skip
    with pytest.raises(ScheduleError, match="replicas=2 do not share 3 ranks evenly"):
        it.Pipeline(sample.model, example=sample.batch, loss=sample.loss, ranks=3, replicas=2)
    with pytest.raises(ValueError, match="replicas=0"):
        it.Pipeline(sample.model, example=sample.batch, loss=sample.loss, replicas=0)
    with pipeline(sample, ranks=2, replicas=2, microbatches=2) as pipe:
        next(sample.model.parameters()).register_hook(lambda g: g)
        with pytest.raises(RunError, match="has a gradient hook and is used in 2 places"):
            pipe.step(sample.batch)


def test_a_schedule_of_replicas_serves_its_own_number():
    """Left out micro-batches would move the others to another replica."""
    sample = SAMPLES["mlp"](1)
    with (
        pipeline(sample, ranks=2, schedule=BOTH_WAYS, example=SAMPLES["mlp"]().batch) as pipe,
        pytest.raises(ScheduleError, match="is for 2 micro-batches, and the batch gives 1"),
    ):
        pipe.step(sample.batch)


def test_check_and_bisect():
    """``check`` runs replicas, and ``bisect`` climbs from one stage to them."""
    sample = SAMPLES["loss_sum_padded"]()
    assert it.check(*sample, ranks=4, replicas=2, microbatches=3).equal
    found = bisect(*sample, ranks=4, replicas=2, microbatches=3)
    assert found.equality.equal
    steps = [rung.name for rung in found.rungs]
    assert any(step.startswith("2 stages, one micro-batch at a time") for step in steps), steps
    assert any(step.startswith("4 ranks, schedule 1f1b") for step in steps), steps


# Schedules.


def test_is_as_drawn():
    """The picture in the module's docstring is what the function builds."""
    from intandem.schedules import replication

    picture = [line.strip() for line in replication.__doc__.splitlines() if "rank " in line[:9]]
    built = replicated(lambda m: build_schedule("1f1b", num_ranks=2, num_microbatches=m), 2, 4)
    assert str(built).splitlines() == picture
    assert built.placement == Placement((0, 2), ((1, 3),))


@pytest.mark.parametrize("name", schedule_names())
def test_replicas_of_every_schedule_verify(name):
    """Any number of replicas and micro-batches, fewer than replicas among them."""
    for num_replicas in (1, 2, 3, 4):
        for m in (1, 2, 3, 5, 7, 8, 10):
            made = replicated(
                lambda count: build_schedule(name, num_ranks=2, num_microbatches=count),
                num_replicas,
                m,
            )
            verify(made)
            assert made.num_ranks == 2 * num_replicas


@pytest.mark.parametrize("schedule", ["chimera", "dualpipe"])
def test_replicas_of_two_directions_take_a_ragged_batch(schedule):
    """A last, smaller batch trains and evaluates, whatever it leaves to each direction."""
    ours, theirs = SAMPLES["gpt_tied"](), SAMPLES["gpt_tied"]()
    with pipeline(ours, ranks=4, replicas=2, schedule=schedule, microbatches=6) as pipe:
        for rows in (7, 5, 3, 1):
            batch = SAMPLES["gpt_tied"](rows).batch
            theirs.model.zero_grad()
            ours.model.zero_grad()
            expected = one_process(theirs.model, batch, theirs.loss, Splitting(6))
            loss = float(pipe.step(batch))
            assert compare(numbers_of(ours.model, loss), expected).equal
            pipe.evaluate(batch)
