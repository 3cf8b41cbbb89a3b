"""Gradients are the same to the last bit wherever the model is cut and whatever the schedule.

On a CPU with one thread per rank: every sum is made of the same terms in the same order. Between
processes it is held in ``tests/multiprocess/test_equality_processes.py``.
"""

import pytest

import intandem as it
from harness import gradients, max_stages, pipeline, plain, repeatable_cuts, same_bits
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


def goes_in_order(name):
    """Whether a schedule's backwards go through the micro-batches in ascending order."""
    rows = it.build_schedule(name, num_ranks=3, num_microbatches=4).actions
    backwards = [[a.microbatch for a in row if a.kind is not ActionKind.F] for row in rows]
    return all(numbers == sorted(numbers) for numbers in backwards)


IN_ORDER = tuple(filter(goes_in_order, schedule_names()))


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
            for schedule in IN_ORDER:
                found = bits(name, seed, ranks=ranks, schedule=schedule, recompute=recompute)
                assert_same(found, expected)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "loss_sum_padded"])
def test_plain_model(name):
    """A step has the plain model's bits, but for weights with several uses.

    And but for a ``LossSum``, whose gradients are scaled once its count is known.
    """
    sample = SAMPLES[name]()
    with pipeline(sample, ranks=min(3, max_stages(name)), microbatches=4, schedule="1f1b") as pipe:
        loss = float(pipe.step(sample.batch))
    expected = plain(name, 4)
    assert loss == pytest.approx(expected.loss, rel=1e-15, abs=0)
    assert same_bits(dict(sample.model.named_buffers()), expected.buffers) == []
    differ = same_bits(gradients(sample.model), expected.gradients)
    # Autograd adds up the uses of a weight per micro-batch, the library per step.
    differ = [n for n in differ if _uses(sample, n) == 1]
    assert differ == []


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
