"""What forwards keep is given back when the schedule says so, counted on real graphs."""

import gc
import threading
import weakref
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import intandem as it
from intandem.costs import CostModel
from intandem.errors import ScheduleError
from intandem.ir import ActionKind
from intandem.runtime.transport.local import LocalTransport
from intandem.schedules import schedule_names
from intandem.simulator import peak_bytes

TRAINING = [name for name in schedule_names() if name != "forward-only"]


class Held:
    """Counts graphs, or bytes, that are alive, by the thread that made them: a rank's."""

    def __init__(self):
        self.lock = threading.Lock()
        self.live, self.peak = Counter(), Counter()

    def take(self):
        thread = threading.get_ident()
        self.add(thread, 1)
        return Token(self, thread)

    def add(self, thread, amount):
        with self.lock:
            self.live[thread] += amount
            self.peak[thread] = max(self.peak[thread], self.live[thread])

    def watch(self, tensor):
        """Count the bytes of ``tensor`` for as long as its memory lives."""
        storage, thread = tensor.untyped_storage(), threading.get_ident()
        self.add(thread, storage.nbytes())
        weakref.finalize(storage, self.add, thread, -storage.nbytes())


class Token:
    def __init__(self, held, thread):
        self.held, self.thread = held, thread

    def __del__(self):
        self.held.add(self.thread, -1)


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


def order_of(schedule, ranks):
    """The order of actions for equal costs, which measured ones might change."""
    try:
        return it.build_schedule(schedule, num_ranks=ranks, num_microbatches=8)
    except ScheduleError as error:
        return pytest.skip(str(error))


def train_twice(model, batch, schedule, ranks, held, microbatches=8):
    """Leave the peaks of the second step."""
    with it.Pipeline(
        model,
        loss=F.mse_loss,
        example=batch,
        ranks=ranks,
        microbatches=microbatches,
        schedule=schedule,
        options=it.Options(threads_per_rank=1),
    ) as pipe:
        for _ in range(2):
            held.peak.clear()
            pipe.step(batch)
        assert set(held.live.values()) == {0}  # of building, too


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("schedule", TRAINING)
def test_graphs_live_from_forward_to_the_backward_for_inputs(schedule, ranks):
    order = order_of(schedule, ranks)
    held = Held()
    model = nn.Sequential(*(Block(held) for _ in range(order.num_stages)))
    train_twice(model, torch.randn(8, 4), order, ranks, held)
    assert sorted(held.peak.values()) == sorted(map(expected_peak, order.actions))


class SavesResult(nn.Module):
    """Has an operation whose backward reads its result, which a graph must not hold as itself."""

    def __init__(self):
        super().__init__()
        self.before, self.after = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.after(self.before(x).softmax(-1))


@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1"])
def test_nothing_of_a_model_outlives_its_pipeline(schedule):
    model = nn.Sequential(SavesResult(), SavesResult())
    batch = torch.randn(8, 4)
    with it.Pipeline(
        model, loss=F.mse_loss, example=batch, ranks=2, microbatches=4, schedule=schedule
    ) as pipe:
        pipe.step(batch)
        pipe.evaluate(batch)
    found = [weakref.ref(parameter) for parameter in model.parameters()]
    found += [weakref.ref(parameter.grad) for parameter in model.parameters()]
    del model, pipe
    gc.collect()
    assert [reference() for reference in found] == [None] * len(found)


class Wide(nn.Module):
    """Keeps one activation, of its own width, for the gradients of inputs and of weights."""

    def __init__(self, held, width):
        super().__init__()
        self.up, self.down = nn.Linear(4, width), nn.Linear(width, 4)
        self.held, self.width = held, width

    def forward(self, x):
        kept = self.up(x).tanh()
        if torch.is_grad_enabled():
            self.held.watch(kept)
        return self.down(kept)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("schedule", TRAINING)
def test_peak_bytes_are_the_simulators(schedule, ranks):
    """Stages of unequal size: kept from F to the end of B, or of W."""
    order = order_of(schedule, ranks)
    held = Held()
    widths = [1000 + 100 * (stage * 7 % 5) for stage in range(order.num_stages)]
    model = nn.Sequential(*(Wide(held, width) for width in widths))
    train_twice(model, torch.randn(16, 4), order, ranks, held)
    kept = tuple(2 * width * 4 for width in widths)
    costs = replace(CostModel.uniform(order.num_stages), activation_bytes=kept, pending_bytes=kept)
    assert sorted(held.peak.values()) == sorted(peak_bytes(order, costs))


class Sends(nn.Module):
    """Whose backward needs what it returned, or does not."""

    def __init__(self, held, *, needed):
        super().__init__()
        self.linear, self.held, self.needed = nn.Linear(4, 4), held, needed

    def forward(self, x):
        made = self.linear(x)
        if self.needed:
            made = made.tanh()
        if torch.is_grad_enabled():
            self.held.watch(made)
        return made


@pytest.mark.parametrize("schedule", ["gpipe", "zb-h1"])
@pytest.mark.parametrize("needed", [False, True])
def test_what_was_sent_is_given_back(schedule, needed, monkeypatch):
    """As soon as it is away, where messages are copies, as between processes; or after B or I."""
    send = LocalTransport.send

    def copied(self, peer, label, payload, contract):
        send(self, peer, label, tuple(tensor.clone() for tensor in payload), contract)

    monkeypatch.setattr(LocalTransport, "send", copied)
    held = Held()
    model = nn.Sequential(Sends(held, needed=needed), nn.Linear(4, 4))
    order = it.build_schedule(schedule, num_ranks=2, num_microbatches=8)
    train_twice(model, torch.randn(8, 4), order, 2, held)

    num_held = expected_peak(order.actions[0]) if needed else 1
    assert list(held.peak.values()) == [num_held * 4 * 4]


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "zb-h1", "zb-v"])
def test_what_is_held_does_not_grow_with_micro_batches(schedule):
    """Where the schedule's peak does not: bytes at M = 8 and at M = 24, rank by rank."""
    peaks = []
    for num_microbatches in (8, 24):
        order = it.build_schedule(schedule, num_ranks=2, num_microbatches=num_microbatches)
        held = Held()
        model = nn.Sequential(*(Wide(held, 64) for _ in range(order.num_stages)))
        batch = torch.randn(2 * num_microbatches, 4)
        train_twice(model, batch, schedule, 2, held, num_microbatches)
        peaks.append(sorted(held.peak.values()))

    assert peaks[0] == peaks[1]
    assert peaks[0][0] > 0
