"""float16 with a gradient scaler, and bfloat16, have one process's numbers, to the last bit."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import intandem as it
from harness import gradients, same_bits
from intandem.errors import RunError

OPTIONS = it.Options(threads_per_rank=1)
HALF = {"device_type": "cpu", "dtype": torch.float16}


def task(rows=8):
    torch.manual_seed(3)
    parts = [nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.LayerNorm(6)) for _ in range(4)]
    return nn.Sequential(*parts), (torch.randn(rows, 6), torch.randn(rows, 6))


def mse(output, batch):
    return F.mse_loss(output.to(batch[1].dtype), batch[1])


def plain_step(model, batch, scaler):
    """Micro-batches of two rows, as torch documents it; returns the loss."""
    total = 0.0
    for rows in range(0, 8, 2):
        part = tuple(leaf[rows : rows + 2] for leaf in batch)
        with torch.autocast(**HALF):
            loss = mse(model(part[0]), part) * 0.25
        scaler.scale(loss).backward()
        total += float(loss.detach())
    return total


def shown(model):
    """Gradients with what is not a number shown as a number, so that it can be compared."""
    return {name: g.nan_to_num(nan=7.0) for name, g in gradients(model).items()}


def update(model, optimizer, scaler, clip):
    scaler.unscale_(optimizer)
    norm = clip(model)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    return float(norm)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("init_scale", [2.0**10, 2.0**40])
def test_training_as_with_torch(ranks, init_scale):
    """Losses, scales, norms and parameters of six steps; the large scale overflows at first."""
    model, batch = task()
    twin = copy.deepcopy(model)
    theirs = torch.amp.GradScaler("cpu", init_scale=init_scale, growth_interval=2)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (model, twin)]
    with it.Pipeline(
        model, example=batch, loss=mse, ranks=ranks, microbatches=4, options=OPTIONS
    ) as pipe:
        ours = pipe.grad_scaler(init_scale=init_scale, growth_interval=2)
        assert isinstance(ours, torch.amp.GradScaler)
        skipped = 0
        for _ in range(20 if init_scale > 2**20 else 6):
            before = ours.get_scale()
            with torch.autocast(**HALF):
                loss = pipe.step(batch)
            assert loss == pytest.approx(plain_step(twin, batch, theirs), rel=1e-6)
            assert same_bits(shown(model), shown(twin)) == []
            norms = [
                update(model, optimizers[0], ours, lambda _: pipe.clip_grad_norm_(1e9)),
                update(
                    twin, optimizers[1], theirs,
                    lambda m: nn.utils.clip_grad_norm_(m.parameters(), 1e9),
                ),
            ]  # fmt: skip
            assert norms[0] == pytest.approx(norms[1], rel=1e-5, nan_ok=True)
            assert ours.get_scale() == theirs.get_scale()
            skipped += ours.get_scale() < before
    assert (skipped > 5) == (init_scale > 2**20)
    assert same_bits(dict(model.named_parameters()), dict(twin.named_parameters())) == []


def test_a_sum_over_tokens_is_scaled():
    """A LossSum, whose gradients are put right after the step, and the whole batch's loss."""

    def summed(output, batch):
        return it.LossSum(F.mse_loss(output, batch[1], reduction="sum"), batch[1].numel())

    for loss in (summed, it.WholeBatchLoss(mse)):
        model, batch = task()
        model, batch = model.double(), tuple(leaf.double() for leaf in batch)
        twin = copy.deepcopy(model)
        expected = mse(twin(batch[0]), batch)
        expected.backward()
        with it.Pipeline(model, example=batch, loss=loss, ranks=2, microbatches=3) as pipe:
            pipe.grad_scaler(init_scale=1024.0)
            assert pipe.step(batch) == pytest.approx(expected.item(), rel=1e-6)
        for name, gradient in gradients(model).items():
            torch.testing.assert_close(gradient, 1024 * gradients(twin)[name], rtol=1e-9, atol=0)


def test_what_does_not_go_together():
    """Scaling twice, clipping scaled gradients, and a second scaler are refused."""
    model, batch = task()
    with it.Pipeline(model, example=batch, loss=mse, ranks=2, microbatches=4) as pipe:
        scaler = pipe.grad_scaler(init_scale=8.0)
        loss = pipe.step(batch)
        with pytest.raises(RunError, match=r"^step\(\) has already run backward, on the loss time"):
            scaler.scale(loss)
        message = (
            "clip_grad_norm_() while gradients are multiplied by the scale of the gradient scaler, "
            "8; call scaler.unscale_(optimizer) first"
        )
        with pytest.raises(RunError, match=f"^{re.escape(message)}$"):
            pipe.clip_grad_norm_(1.0)
        scaler.unscale_(torch.optim.SGD(model.parameters(), lr=0.1))
        assert pipe.clip_grad_norm_(1.0) > 0
        with pytest.raises(RunError, match="has a gradient scaler already"):
            pipe.grad_scaler()


def test_a_scaler_that_is_switched_off():
    """``enabled=False`` leaves everything as it is without one."""
    model, batch = task()
    twin = copy.deepcopy(model)
    for each in (model, twin):
        with it.Pipeline(each, example=batch, loss=mse, ranks=2, microbatches=4) as pipe:
            if each is model:
                scaler = pipe.grad_scaler(enabled=False)
            pipe.step(batch)
            if each is model:
                pipe.clip_grad_norm_(1e9)
                optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
                scaler.step(optimizer)
                scaler.update()
    assert same_bits(gradients(model), gradients(twin)) == []


@pytest.mark.parametrize(
    ("ranks", "schedule"), [(1, "1f1b"), (2, "1f1b"), (2, "zb-h1"), (4, "1f1b")]
)
def test_bfloat16_autocast(ranks, schedule):
    """Gradients are one process's under the same autocast, to the last bit."""
    model, batch = task()
    twin = copy.deepcopy(model)
    for rows in range(0, 8, 2):
        part = tuple(leaf[rows : rows + 2] for leaf in batch)
        with torch.autocast("cpu", torch.bfloat16):
            loss = mse(twin(part[0]), part) * 0.25
        loss.backward()
    with it.Pipeline(
        model, example=batch, loss=mse, ranks=ranks, schedule=schedule, microbatches=4,
        options=OPTIONS,
    ) as pipe, torch.autocast("cpu", torch.bfloat16):  # fmt: skip
        pipe.step(batch)
    assert same_bits(gradients(model), gradients(twin)) == []
