"""How often the user's forwards run: once for each micro-batch, and no more."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import intandem as it
from harness import COUNTS, Counting
from intandem.errors import ScheduleError
from intandem.runtime.transport.local import LocalTransport
from intandem.schedules import schedule_names
from intandem.schedules.registry import leaves_open

IN_ORDER = [n for n in schedule_names() if n != "forward-only" and not leaves_open(n, "costs")]
MICROBATCHES = 8


def counted(num_blocks):
    """A model, and how often each of its blocks has run."""
    COUNTS.clear()
    return nn.Sequential(*map(Counting, range(num_blocks))), COUNTS


def once_for_each(counts, times):
    """Whether every block has run so often; begins anew."""
    found = set(counts.values())
    counts.clear()
    return found == {times}


@pytest.mark.parametrize("rows", [8, 7])
def test_no_step_runs_a_forward_more_than_once_for_a_micro_batch(rows):
    """Neither the first, nor the first evaluation, nor a change of modes; parts even or not."""
    model, counts = counted(4)
    x = torch.randn(rows, 4)
    with it.Pipeline(model, example=x, loss=F.mse_loss, ranks=2, microbatches=4) as pipe:
        counts.clear()
        for _ in range(2):
            for call in (pipe.step, pipe.step, pipe.evaluate, pipe.predict, pipe.evaluate):
                call(x)
                assert once_for_each(counts, 4), call
            for is_training in (False, True):
                model.train(is_training)
                pipe.evaluate(x)
                assert once_for_each(counts, 4)


@pytest.mark.parametrize("schedule", IN_ORDER)
def test_recomputation_runs_each_forward_twice(schedule):
    """Never three times: I and W share what a backward has computed again."""
    try:
        order = it.build_schedule(schedule, num_ranks=2, num_microbatches=MICROBATCHES)
    except ScheduleError as error:
        pytest.skip(str(error))
    model, counts = counted(order.num_stages)
    x = torch.randn(MICROBATCHES, 4)
    with it.Pipeline(
        model,
        example=x,
        loss=F.mse_loss,
        ranks=2,
        microbatches=MICROBATCHES,
        schedule=schedule,
        recompute="all",
    ) as pipe:
        for _ in range(2):
            counts.clear()
            pipe.step(x)
            assert once_for_each(counts, 2 * MICROBATCHES)


class Masked(nn.Module):
    """Every block reads a mask and positions that follow from the batch alone."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))

    def forward(self, x):
        mask = (x[..., :1] > 0).to(x.dtype)
        positions = torch.arange(x.shape[1], dtype=x.dtype)[:, None]
        for block in self.blocks:
            x = block(x * mask + positions).tanh()
        return x


def test_what_the_batch_decides_never_travels(monkeypatch):
    """Each message of a step is one activation, or its gradient."""
    sent, send = [], LocalTransport.send

    def noted(self, peer, label, payload, contract):
        sent.append([tuple(tensor.shape) for tensor in payload])
        send(self, peer, label, payload, contract)

    monkeypatch.setattr(LocalTransport, "send", noted)
    x = torch.randn(4, 3, 4)
    with it.Pipeline(Masked(), example=x, loss=F.mse_loss, ranks=4, microbatches=2) as pipe:
        pipe.step(x)

    assert sent == [[(2, 3, 4)]] * (2 * 2 * 3)
