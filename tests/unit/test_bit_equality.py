"""Gradients are the same to the last bit wherever the model is cut and whatever the schedule.

On a CPU with one thread per rank: every sum is made of the same terms in the same order. Between
processes it is held in ``tests/multiprocess/test_equality_processes.py``.
"""

import contextlib

import pytest

import intandem as it
from deep_models import DEEP
from harness import gradients, max_stages, pipeline, plain, repeatable_cuts, same_bits
from intandem.errors import ScheduleError
from intandem.ir import ActionKind
from intandem.recorder import bind_by_signature
from intandem.schedules import schedule_names
from models import SAMPLES

NAMES = [
    "mlp",
    "gpt_tied",
    "batch_norm",
    "unet",
    "fan_out",
    "shared_block",
    "parameter_in_glue",
    "dropout_in_blocks",
    "dropout_in_glue",
    "dictionary_output",
    "in_place_glue",
    "checkpointed_inside",
    "loss_sum_padded",
    "llama_tied",
    "gpt2_dropout",
]


CLASSICS = ("naive", "gpipe", "1f1b")


def bits(name, seed=0, **kwargs):
    """Loss, gradient norm, gradients and buffers after a step, cut at random places."""
    sample = SAMPLES[name]()
    with repeatable_cuts(seed), pipeline(sample, microbatches=4, **kwargs) as pipe:
        loss = float(pipe.step(sample.batch))
        norm = pipe.clip_grad_norm_(1.0)
    return loss, norm, gradients(sample.model), dict(sample.model.named_buffers())


def assert_same(found, expected):
    assert found[:2] == expected[:2]
    assert same_bits(found[2], expected[2]) == []
    assert same_bits(found[3], expected[3]) == []


@pytest.mark.parametrize("name", NAMES)
def test_cuts_and_schedules(name):
    """1 to 4 stages, cut here or there, recomputed or not, and all schedules give the same bits."""
    expected = bits(name, ranks=1, schedule="1f1b")
    for ranks in range(1, min(4, max_stages(name)) + 1):
        for seed, recompute in ((1, "none"), (2, "all")):
            for schedule in CLASSICS:
                found = bits(name, seed, ranks=ranks, schedule=schedule, recompute=recompute)
                assert_same(found, expected)


@pytest.mark.parametrize("microbatches", [1, 4])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "loss_sum_padded"])
def test_plain_model(name, microbatches):
    """A step has the plain model's bits, but for weights with several uses.

    Gradients, of one micro-batch: the next are added while they are computed, which rounds once
    where a plain model rounds twice. And but for a ``LossSum``, whose gradients are scaled once its
    count is known.
    """
    sample, ranks = SAMPLES[name](), min(3, max_stages(name))
    with pipeline(sample, ranks=ranks, microbatches=microbatches, schedule="1f1b") as pipe:
        loss = float(pipe.step(sample.batch))
    expected = plain(name, microbatches)
    assert loss == pytest.approx(expected.loss, rel=1e-15, abs=0)
    assert same_bits(dict(sample.model.named_buffers()), expected.buffers) == []
    if microbatches == 1:
        differ = same_bits(gradients(sample.model), expected.gradients)
        # Autograd adds up the uses of a weight per micro-batch, the library per step.
        assert [n for n in differ if _uses(sample, n) == 1] == []


def _uses(sample, name):
    bind = bind_by_signature(sample.model, loss_is_separate=sample.loss is not None)
    graph = it.capture(sample.model, sample.batch, bind=bind)
    return sum(name in call.parameters for call in graph.calls)


@pytest.mark.parametrize("name", ["mlp", "gpt_tied", "unet", "dropout_in_blocks"])
def test_repeated_runs(name):
    """The same run again gives the same bits: threads do not race for sums."""
    first = bits(name, ranks=min(4, max_stages(name)), schedule="gpipe")
    for _ in range(4):
        assert_same(bits(name, ranks=min(4, max_stages(name)), schedule="gpipe"), first)


def goes_in_order(order):
    """Whether each stage is held once and its backwards ascend through the micro-batches."""
    weights = {}
    for row in order.actions:
        for action in row:
            if action.kind in {ActionKind.B, ActionKind.W}:
                weights.setdefault(action.stage, []).append(action.microbatch)
    return not order.placement.replicas and all(m == sorted(m) for m in weights.values())


@pytest.mark.parametrize("family", ["layers", "tied_language_model", "fan_out", "skips"])
def test_every_schedule_in_order(family):
    """One stage or several per rank, backwards whole or split: the bits of one rank."""
    expected = None
    for name in schedule_names():
        for ranks in (1, 2, 4):
            with contextlib.suppress(ScheduleError):
                order = it.build_schedule(name, num_ranks=ranks, num_microbatches=8)
                if order.is_forward_only or not goes_in_order(order):
                    continue
                sample = DEEP[family]()
                with repeatable_cuts(), pipeline(
                    sample, ranks=ranks, microbatches=8, schedule=order
                ) as pipe:  # fmt: skip
                    loss = float(pipe.step(sample.batch))
                found = loss, gradients(sample.model)
                expected = expected or found
                assert found[0] == expected[0], (name, ranks)
                assert same_bits(found[1], expected[1]) == [], (name, ranks)
