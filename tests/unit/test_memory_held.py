"""What forwards keep is given back when the schedule says so, counted on real graphs."""

import threading
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import intandem as it
from intandem.errors import ScheduleError
from intandem.ir import ActionKind
from intandem.schedules import schedule_names
from intandem.schedules.registry import leaves_open

IN_ORDER = [n for n in schedule_names() if n != "forward-only" and not leaves_open(n, "costs")]


class Held:
    """Counts graphs that are alive, by the thread that made them; a thread is a rank."""

    def __init__(self):
        self.lock = threading.Lock()
        self.live, self.peak = Counter(), Counter()

    def take(self):
        thread = threading.get_ident()
        with self.lock:
            self.live[thread] += 1
            self.peak[thread] = max(self.peak[thread], self.live[thread])
        return Token(self, thread)


class Token:
    def __init__(self, held, thread):
        self.held, self.thread = held, thread

    def __del__(self):
        with self.held.lock:
            self.held.live[self.thread] -= 1


class Marked(torch.autograd.Function):
    """Does nothing, and holds a token for as long as its node in the graph lives."""

    @staticmethod
    def forward(ctx, x, held):
        ctx.token = held.take()
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class Block(nn.Module):
    def __init__(self, held):
        super().__init__()
        self.linear, self.held = nn.Linear(4, 4), held

    def forward(self, x):
        x = self.linear(x)
        if torch.is_grad_enabled():
            x = Marked.apply(x, self.held)
        return self.linear(x.tanh())


def expected_peak(row):
    """Most forwards at once whose backward for inputs has not ended."""
    live = peak = 0
    for action in row:
        live += action.kind is ActionKind.F
        peak = max(peak, live)
        live -= action.kind in {ActionKind.B, ActionKind.I}
    return peak


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("schedule", IN_ORDER)
def test_graphs_live_from_forward_to_the_backward_for_inputs(schedule, ranks):
    try:
        order = it.build_schedule(schedule, num_ranks=ranks, num_microbatches=8)
    except ScheduleError as error:
        pytest.skip(str(error))
    held = Held()
    model = nn.Sequential(*(Block(held) for _ in range(order.num_stages)))
    batch = torch.randn(8, 4)
    with it.Pipeline(
        model,
        loss=F.mse_loss,
        example=batch,
        ranks=ranks,
        microbatches=8,
        schedule=schedule,
        options=it.Options(threads_per_rank=1),
    ) as pipe:
        pipe.step(batch)
        held.peak.clear()
        pipe.step(batch)
        assert set(held.live.values()) == {0}
    assert sorted(held.peak.values()) == sorted(map(expected_peak, order.actions))
