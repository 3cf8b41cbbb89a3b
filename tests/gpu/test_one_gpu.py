"""Ranks that share one GPU give one process's numbers, and do not wait for it on the way.

On a machine without a GPU these run on a pretend one: ``make test-gpu``.
"""

from collections import Counter

import pytest
import torch

import intandem as it
from harness import pipeline, relative_error
from intandem.equality import bisect, check
from models import RANDOM, SAMPLES, Sample

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: make test-gpu"),
]

NAMES = [
    "gpt_tied", "batch_norm", "unet", "fan_out", "two_towers", "shared_block", "frozen_first",
    "dropout_in_glue", "multi_head_attention", "in_place_glue", "loss_in_output",
    "loss_sum_padded", "checkpointed_inside", "custom_function", "llama_tied", "gpt2_dropout",
]  # fmt: skip


@pytest.mark.parametrize(
    ("ranks", "schedule", "recompute"),
    [(1, "gpipe", "none"), (2, "1f1b", "all"), (2, "zb-h1", "none"), (3, "1f1b", "none")],
)
@pytest.mark.parametrize("name", NAMES)
def test_local_ranks_on_one_device(name, ranks, schedule, recompute):
    """Gradients, loss and buffers are those of the plain module on the same device."""
    model, batch, loss = SAMPLES[name]()
    equality = check(
        model, batch, loss, ranks=ranks, schedule=schedule, recompute=recompute, microbatches=3
    )
    assert equality.equal, (equality.loss_error, equality.worst())
    assert all(parameter.is_cuda for parameter in model.parameters())


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
def test_a_model_of_the_hosts_is_moved(device):
    """To the GPU that ``Options`` says, with batches that are in the host's memory."""
    if int(device[-1]) >= torch.cuda.device_count():
        pytest.skip("needs two GPUs")
    model, batch, loss = SAMPLES["gpt_tied"]()
    model, batch = model.cpu(), tuple(leaf.cpu() for leaf in batch)
    with it.Pipeline(
        model, example=batch, loss=loss, ranks=2, options=it.Options(device=device)
    ) as pipe:
        value = float(pipe.step(batch))
        predicted = pipe.predict(batch)
    assert value > 0
    assert {parameter.grad.device for parameter in model.parameters()} == {torch.device(device)}
    assert predicted.device == torch.device(device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1"])
def test_autocast(schedule, dtype):
    """Mixed precision of the device: gradients as near the exact ones as the plain model's."""
    errors = []
    for whole in (False, True):
        model, batch, loss = SAMPLES["gpt_untied"]()
        exact = gradients_of(model, batch, loss)
        model.float().zero_grad()
        with torch.autocast("cuda", dtype):
            if whole:
                found = gradients_of(model, batch, loss)
            else:
                sample = SAMPLES["gpt_untied"]()._replace(model=model, batch=batch)
                with pipeline(sample, ranks=2, microbatches=1, schedule=schedule) as pipe:
                    pipe.step(batch)
                found = {n: p.grad.double() for n, p in model.named_parameters()}
        errors.append(max(float((found[n] - g).norm() / g.norm()) for n, g in exact.items()))
    assert errors[0] <= 1.5 * errors[1]
    assert errors[0] > 1e-6  # it was in low precision at all


def gradients_of(model, batch, loss):
    loss(model(*batch[:1]), batch).backward()
    return {name: p.grad.double().clone() for name, p in model.named_parameters()}


def test_gradients_are_moved_with_the_model():
    """A pipeline adds to what a step in the host's memory has left."""
    model, batch, loss = SAMPLES["gpt_untied"]()
    model, batch = model.cpu(), tuple(leaf.cpu() for leaf in batch)
    loss(model(*batch[:1]), batch).backward()
    once = {name: p.grad.clone() for name, p in model.named_parameters()}
    with it.Pipeline(model, example=batch, loss=loss, ranks=2, microbatches=2) as pipe:
        pipe.step(batch)
    twice = {name: p.grad.cpu() for name, p in model.named_parameters()}
    assert relative_error(twice, {name: 2 * gradient for name, gradient in once.items()}) < 1e-12


def test_measured_costs_are_those_of_the_gpu():
    """A segment's time ends when the GPU has done it, not when it has been asked to."""
    pretend_gpu = pytest.importorskip("pretend_gpu")
    sample = SAMPLES["gpt_tied"]()
    pretend_gpu.host_waits()
    with pipeline(sample, ranks=2, microbatches=2) as pipe:
        waits = Counter(pretend_gpu.host_waits())
        assert waits["device"] >= 4 * len(pipe._assembly.segments)


@pytest.mark.parametrize("name", ["gpt_tied", "batch_norm", "dropout_in_glue"])
def test_check_compares_on_the_gpu(name):
    """One process computes where the pipeline does, and draws there, wherever the model is."""
    model, batch, loss = SAMPLES[name]()
    model, batch = model.cpu(), tuple(leaf.cpu() for leaf in batch)
    assert check(model, batch, loss).equal
    assert bisect(model, batch, loss).equality.equal
    assert not any(parameter.is_cuda for parameter in model.parameters())


def counted(output, batch):
    """A LossSum and a metric whose counts are on the GPU."""
    known = batch[1] >= 2
    total = (output.mean((1, 2))[:, None] * known).sum()
    return {"loss": it.LossSum(total, known.sum()), "known": it.LossSum(known.sum(), len(known))}


def test_counts_on_the_gpu():
    """A ``LossSum`` with a tensor for its count, other in each micro-batch, and metrics."""
    model, batch, _ = SAMPLES["gpt_untied"]()
    assert check(model, batch, counted, ranks=2, microbatches=3).equal
    kept = torch.zeros((), dtype=torch.float64, device="cuda")

    def in_one_tensor(output, batch):
        found = counted(output, batch)
        kept.copy_(found["loss"].count)
        return {**found, "loss": it.LossSum(found["loss"].sum, kept)}

    sample = Sample(model, batch, in_one_tensor)
    with pipeline(sample, ranks=2, microbatches=3) as pipe:
        found = pipe.step(batch)
    with pipeline(sample._replace(loss=counted), ranks=2, microbatches=3) as pipe:
        assert float(found) == float(pipe.evaluate(batch))
    known = batch[1] >= 2
    assert found.metrics["known"] == pytest.approx(float(known.sum()) / len(known))


@pytest.mark.parametrize("with_optimizer", [False, True], ids=["user's", "pipe.optimizer"])
@pytest.mark.parametrize("loss", [None, counted], ids=["mean", "LossSum"])
@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1"])
def test_the_host_waits_once_for_a_step(schedule, loss, with_optimizer):
    """For its loss: of what is computed nothing is read before, nor while it is computed."""
    pretend_gpu = pytest.importorskip("pretend_gpu")
    sample = SAMPLES["gpt_tied"]()
    sample = sample._replace(loss=loss or sample.loss)
    batch = tuple(leaf.cpu() for leaf in sample.batch)

    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=0.1)

    with pipeline(sample, ranks=3, microbatches=4, schedule=schedule) as pipe:
        optimizer = pipe.optimizer(sgd) if with_optimizer else sgd(sample.model.parameters())
        for step in range(4):
            loss = pipe.step(batch)
            optimizer.step()
            optimizer.zero_grad()
            float(loss)
            waits = Counter(pretend_gpu.host_waits())
            if step:
                assert waits == {"event": 1}, waits


def test_draws_are_those_of_the_seed():
    """Two pipelines with one seed draw alike, whatever the GPU's generator has done before."""
    assert "dropout_in_glue" in RANDOM
    losses = []
    for seed, before in ((0, 1), (0, 2), (5, 1)):
        sample = SAMPLES["dropout_in_glue"]()
        torch.cuda.manual_seed_all(before)
        options = it.Options(seed=seed, threads_per_rank=1)
        with pipeline(sample, ranks=2, microbatches=2, options=options) as pipe:
            losses.append([float(pipe.step(sample.batch)) for _ in range(2)])
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]
