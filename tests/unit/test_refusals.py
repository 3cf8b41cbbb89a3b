"""What cannot work is refused before the first step, with what is wrong and what to do."""

import re

import pytest
import torch
from torch import nn

import intandem as it
from harness import gradients, pipeline, relative_error
from intandem.errors import (
    ActionError,
    BatchError,
    CaptureError,
    LossError,
    NonFiniteLossError,
    RunError,
    ScheduleError,
)
from intandem.schedules import schedule_names
from models import SAMPLES, Sample, regression, row_mean


def build(sample=None, **kwargs):
    """Build a pipeline of the MLP, or another sample, and close it."""
    with pipeline(sample or SAMPLES["mlp"](), **{"ranks": 2, "microbatches": 2, **kwargs}):
        pass


def refused(error, message):
    return pytest.raises(error, match=f"^{re.escape(message)}$")


# Numbers and names.


def test_more_stages_than_blocks():
    """The message says how many stages there can be, and names them."""
    with refused(
        CaptureError,
        "the model can be cut into 5 stages at most (0.0, 1.0, 2.0, 3.0, 4.0), and the schedule "
        "has 6; use ranks=5 or fewer",
    ):
        build(
            Sample(
                nn.Sequential(*(nn.Sequential(nn.Linear(6, 6)) for _ in range(5))).double(),
                SAMPLES["mlp"]().batch,
                row_mean,
            ),
            ranks=6,
        )


def test_numbers_below_one():
    """A pipeline has at least one rank, and a batch at least one micro-batch."""
    with refused(ValueError, "microbatches=0; a batch is split into 1 or more"):
        build(microbatches=0)
    with refused(ValueError, "ranks=0; a pipeline has 1 or more"):
        build(ranks=0)


def test_unknown_words():
    """Unknown names are refused with those there are."""
    known = ", ".join(schedule_names())
    with refused(ScheduleError, f"unknown schedule '1f2b'; known: {known}; did you mean '1f1b'?"):
        build(schedule="1f2b")
    with refused(ValueError, "recompute='some'; expected 'auto', 'none' or 'all'"):
        build(recompute="some")
    with refused(ValueError, "stages='even'; expected 'auto' or a list of module names"):
        build(stages="even")


def test_stages_that_cannot_be():
    """Named stages must exist, in order, and be as many as the schedule has."""
    sample = SAMPLES["gpt_untied"]()
    with pytest.raises(
        CaptureError, match=r"no stage can begin with 'blocks\.7' there: it is not called"
    ):
        build(sample, stages=["blocks.7"])
    with pytest.raises(CaptureError, match="split_points names 2 modules, for 3 stages, and"):
        build(sample, stages=["blocks.1", "norm"])
    with pytest.raises(CaptureError, match=r"'blocks\.1' there: it is not called after norm"):
        build(sample, ranks=3, stages=["norm", "blocks.1"])


def test_schedule_for_other_numbers():
    """A schedule given as a value is for its own numbers of ranks and micro-batches."""
    schedule = it.build_schedule("1f1b", num_ranks=2, num_microbatches=3)
    with refused(
        ScheduleError,
        "schedule 1f1b is for 2 ranks and 3 micro-batches, and is to run 4 and 3; build it for "
        "these, or give its name",
    ):
        build(ranks=4, schedule=schedule, microbatches=3)


# Models.


class Changed(nn.Module):
    """Linear blocks with something odd between them."""

    def __init__(self, between):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.register_buffer("seen", torch.zeros(6))
        self.between = between

    def forward(self, x):
        for block in self.blocks:
            x = self.between(self, block(x))
        return x


def of(between):
    return regression(Changed(between).double(), 4)


def branches(model, x):
    del model
    return x if x.sum() > 0 else -x


def replaces(model, x):
    model.seen = model.seen + x.detach().mean(0)
    return x


class Box:
    """Carries a tensor past the arguments."""

    def __init__(self):
        self.tensor = None


class Opens(nn.Module):
    """A block that finds a tensor in a box."""

    def __init__(self, box):
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.box = box

    def forward(self, x):
        return self.linear(x) + self.box.tensor


class Smuggles(nn.Module):
    """Puts an activation into a box that a later block opens."""

    def __init__(self):
        super().__init__()
        self.box = Box()
        self.blocks = nn.ModuleList([nn.Linear(6, 6), Opens(self.box), nn.Linear(6, 6)])

    def forward(self, x):
        x = self.blocks[0](x)
        self.box.tensor = x * 2
        for block in self.blocks[1:]:
            x = block(x)
        return x


class Cached(nn.Module):
    """Hands an object that holds tensors to its blocks."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(TakesCache() for _ in range(3))

    def forward(self, x):
        cache = Box()
        cache.tensor = x
        for block in self.blocks:
            x = block(x, cache)
        return x


class TakesCache(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x, cache):
        cache.tensor = x
        return self.linear(x)


@pytest.mark.filterwarnings("ignore:Converting a tensor")
def test_python_control_flow_on_an_activation():
    """The file and line of the branch are named, and what to write instead."""
    line = branches.__code__.co_firstlineno + 2
    with pytest.raises(
        CaptureError,
        match=rf"value of an activation .*test_refusals\.py:{line};.*blocks=.*torch\.where",
    ):
        build(of(branches))


def test_replaced_buffer():
    """A buffer replaced between blocks is named, with the way to write to it."""
    with pytest.raises(CaptureError, match=r"replaces seen between blocks.*seen\.copy_\(\.\.\.\)"):
        build(of(replaces))


def test_tensor_through_a_python_object():
    """A tensor that reaches a block past its arguments is refused with the line."""
    with pytest.raises(CaptureError, match=r"through a Python object, at .*test_refusals\.py:\d+"):
        build(regression(Smuggles().double(), 4))


def test_cache_object():
    """An object that holds tensors and is handed from block to block is named."""
    with pytest.raises(CaptureError, match=r"blocks\.0 is given a Box that holds tensors, at .*"):
        build(regression(Cached().double(), 4))


def test_wrapped_in_data_parallel():
    """A model that reduces its own gradients is refused: it would do so per micro-batch."""

    class DistributedDataParallel(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    sample = SAMPLES["mlp"]()
    with refused(
        RunError,
        "the model is wrapped in DistributedDataParallel, whose gradient reductions would run per "
        "micro-batch; give the pipeline the bare module",
    ):
        build(sample._replace(model=DistributedDataParallel(sample.model)))


def test_forward_that_raises():
    """What ``forward`` raises while being recorded is shown, with the arguments it was given."""
    sample = SAMPLES["two_towers"]()
    with pytest.raises(
        CaptureError, match=r"when called with 1 positional arguments: .*add 'right'"
    ):
        build(sample._replace(batch=sample.batch[0]), inputs=one_argument)


def test_stages_that_do_not_fit():
    """What one returned and the next does not take is named with both."""

    class Front(nn.Linear):
        def forward(self, x):
            return {"hid": super().forward(x)}

    class Back(nn.Linear):
        def forward(self, hidden):
            return super().forward(hidden)

    message = "stage 1 (Back) was given hid, which its forward does not take; stage 0 returned hid"
    with pytest.raises(CaptureError, match=re.escape(message)):
        it.Pipeline([Front(2, 2), Back(2, 2)], example=torch.ones(4, 2), loss=row_mean, ranks=2)


def one_argument(batch):
    from intandem.recorder import Arguments

    return Arguments((batch,), {})


def test_keys_that_forward_does_not_take():
    """A dictionary without any of ``forward``'s arguments is refused with both lists."""
    sample = SAMPLES["guarded_mask"]()
    with refused(
        BatchError,
        "the batch has keys ['y'], and forward of Masked takes ['mask', 'scale', 'x']; rename "
        "the keys",
    ):
        build(sample._replace(batch={"y": sample.batch["x"]}))


# Batches.


def test_leaves_of_unequal_length():
    """Leaves with other numbers of rows are listed, with the way to say how to split them."""
    x, y = SAMPLES["mlp"]().batch
    with refused(
        BatchError,
        "leaves of the batch disagree about the number of rows: 0 has 7, 1 has 3; say which dim "
        'holds the rows, or None to give a leaf whole to every micro-batch: split={"name": None}',
    ):
        build(SAMPLES["mlp"]()._replace(batch=(x, y[:3])))


# Losses.


def test_missing_loss():
    """Without a loss the message says where one may come from."""
    with pytest.raises(
        LossError, match=r"no loss: the model's output \(Tensor\) has no `loss`; give Pipeline"
    ):
        build(SAMPLES["mlp"]()._replace(batch=SAMPLES["mlp"]().batch[0], loss=None))


def test_loss_that_is_not_a_scalar():
    """A loss per row, a number or an integer is refused with its shape or type."""
    sample = SAMPLES["mlp"]()
    for loss, found in (
        (lambda output, _: output, "the loss has shape (4, 6) and dtype torch.float64"),
        (lambda output, _: output.sum().long(), "the loss has shape () and dtype torch.int64"),
        (lambda output, _: it.LossSum(output, 1), "LossSum.sum has shape (4, 6)"),
        (lambda output, _: 1.0, "the loss is a float; expected a scalar tensor or a LossSum"),
    ):
        with pytest.raises(LossError, match=re.escape(found)):
            build(sample._replace(loss=loss))


def test_loss_backward_explains():
    """``step`` has run backward already; calling it says so."""
    sample = SAMPLES["mlp"]()
    with (
        pipeline(sample, ranks=2, microbatches=2) as pipe,
        refused(
            LossError,
            "step() has already run backward: gradients are in .grad; drop the backward() call",
        ),
    ):
        pipe.step(sample.batch).backward()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_loss_that_is_not_finite(value):
    """It names stage and micro-batch; after ``zero_grad`` the pipeline goes on."""
    sample = SAMPLES["mlp"]()
    x, y = sample.batch
    broken = y.clone()
    broken[5] = value
    with pipeline(sample, ranks=3, microbatches=3) as pipe:
        optimizer = torch.optim.SGD(pipe.parameters(), lr=0.1)
        with pytest.raises(NonFiniteLossError) as caught:
            pipe.step((x, broken))
        assert str(caught.value) == (
            f"loss is {value} at stage 2 micro-batch 2 of step 0; the gradients of this step are "
            "not usable: call zero_grad() before going on"
        )
        optimizer.zero_grad()
        pipe.step(sample.batch)
    theirs = SAMPLES["mlp"]()
    row_mean(theirs.model(x), theirs.batch).backward()
    assert relative_error(gradients(sample.model), gradients(theirs.model)) <= 1e-12


def test_nan_in_evaluation():
    """Evaluation refuses a loss that is not finite as well."""
    sample = SAMPLES["mlp"]()
    x, y = sample.batch
    with (
        pipeline(sample, ranks=2, microbatches=2) as pipe,
        pytest.raises(NonFiniteLossError, match="at stage 1 micro-batch 0"),
    ):
        pipe.evaluate((x, y * float("nan")))


# While it runs.


class Fails(nn.Module):
    """Raises when told to."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.broken = False

    def forward(self, x):
        if self.broken:
            msg = "boom"
            raise ZeroDivisionError(msg)
        return self.linear(x)


def test_an_action_that_raises():
    """The error names rank, step, stage, micro-batch and action; the pipeline ends with it."""
    model = nn.Sequential(nn.Linear(6, 6), Fails(), nn.Linear(6, 6)).double()
    sample = regression(model, 4)
    with pipeline(sample, ranks=3, microbatches=2) as pipe:
        pipe.step(sample.batch)
        model[1].broken = True
        with pytest.raises(ActionError) as caught:
            pipe.step(sample.batch)
        assert str(caught.value) == (
            "rank 1 raised ZeroDivisionError: boom at step 1 stage 1 micro-batch 0 action 1F0"
        )
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        with pytest.raises(RunError, match=r"ended with a failure: rank 1 .*; build a new one"):
            pipe.step(sample.batch)
