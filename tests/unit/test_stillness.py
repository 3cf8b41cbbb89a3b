"""When a rank is taken to hang: on a clock of numbers, and in threads."""

import threading

import pytest
import torch
from torch import nn

import intandem as it
from intandem.errors import CheckpointError, PeerFailureError, RunError
from intandem.pipeline.home import Home
from intandem.runtime.local_watch import LocalWatch
from intandem.runtime.stacks import stack_of
from intandem.runtime.stillness import Glance, Stillness
from intandem.runtime.watch import BETWEEN_STEPS, OPTIMIZER, Position

BEAT_S = 0.25
FORWARD = "1F2"


def at(doing, step=5):
    """A place: another one at each call."""
    return Position(step, 7, None, None, doing)


def hang_after(position, *, first_step=0, is_awaited=False, busy_s=(), limit_s=1000.0):
    """Seconds until a rank that stays at ``position`` is taken to hang; None if it is not.

    Before, it was as long as ``busy_s`` says at places of the same kind.
    """
    stillness = Stillness(30.0)
    for seconds in busy_s:
        seen = Glance(at(position.doing), 0, first_step, is_awaited)
        for _ in range(round(seconds / BEAT_S) + 1):
            assert stillness.look(seen, BEAT_S) is None
    stillness.look(Glance(position, 0, first_step, is_awaited), BEAT_S)
    for number in range(1, round(limit_s / BEAT_S)):
        hang = stillness.look(Glance(position, 0, first_step, is_awaited), BEAT_S)
        if hang is not None:
            return number * BEAT_S, str(hang)
    return None


@pytest.mark.parametrize(
    ("place", "found", "limit_s"),
    [
        (at(FORWARD), {}, 30),
        (at(OPTIMIZER), {}, 30),
        (at(FORWARD), {"busy_s": [4.0, 20.0, 0.5]}, 100),
        (at(FORWARD), {"busy_s": [4.0, 0.5]}, 30),
        (at(FORWARD, step=3), {"first_step": 3}, 300),
        (at("save()"), {}, 300),
        (at("save()"), {"busy_s": [100.0]}, 500),
        (at(BETWEEN_STEPS), {"is_awaited": True}, 300),
    ],
)
def test_standing_still_counts_after_a_while(place, found, limit_s):
    """30 s, or 5 times the longest; ten times as patient with what is no action, or is new."""
    after_s = limit_s + BEAT_S

    assert hang_after(place, **found) == (
        after_s,
        f"has not moved for {after_s:.3g} s (limit {limit_s:.3g} s)",
    )


def test_nobody_waits_for_the_code_of_a_user():
    """What is done between steps may take as long as it likes."""
    assert hang_after(at(BETWEEN_STEPS)) is None


def test_a_rank_that_has_not_begun_does_not_hang():
    """Building a pipeline may take minutes."""
    stillness = Stillness(1.0)

    seen = [stillness.look(Glance(None, 0, None, is_awaited=True), 1.0) for _ in range(100)]

    assert seen == [None] * 100


def test_waiting_is_moving():
    """A rank that waits looks for a verdict all the time: it is a victim."""
    stillness, place = Stillness(1.0), at("recv:0F2>1@0")

    seen = [stillness.look(Glance(place, n, 0, is_awaited=True), 1.0) for n in range(100)]

    assert seen == [None] * 100


def test_the_same_action_again_is_moving():
    """A place is where a rank has come to, not what it is called."""
    stillness = Stillness(1.0)

    seen = [stillness.look(Glance(at(FORWARD), 0, 0, is_awaited=True), 1.0) for _ in range(100)]

    assert seen == [None] * 100


def in_pdb(inside, leave):
    """Wait in a frame of a module that is called pdb."""
    space = {"__name__": "pdb"}
    exec("def wait(inside, leave):\n    inside.set()\n    leave.wait()", space)
    space["wait"](inside, leave)


@pytest.mark.parametrize(("wait", "is_debugged"), [(in_pdb, True), (None, False)])
def test_somebody_with_a_debugger_is_left_alone(wait, is_debugged):
    """A thread at a prompt does not hang."""
    inside, leave = threading.Event(), threading.Event()
    plain = lambda one, other: (one.set(), other.wait())  # noqa: E731
    thread = threading.Thread(target=wait or plain, args=(inside, leave))
    thread.start()
    inside.wait()

    stack = stack_of(thread.ident)
    leave.set()
    thread.join()

    assert stack.is_debugged is is_debugged
    assert "wait" in stack.text


class Stuck(nn.Module):
    """Waits where it is told to, until it is let go."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.at_call, self.calls, self.leave = None, 0, threading.Event()

    def forward(self, x):
        self.calls += 1
        if self.calls == self.at_call:
            self.leave.wait()
        return self.linear(x)


@pytest.fixture
def stuck():
    """A module that waits; let go at the end."""
    made = Stuck()
    yield made
    made.leave.set()


def pipeline(stuck, width=4, **options):
    batch = {"input": torch.ones(4, 4), "target": torch.zeros(4, width)}
    pipe = it.Pipeline(
        nn.Sequential(nn.Linear(4, 4), stuck),
        example=batch,
        loss=lambda output, batch: nn.functional.mse_loss(output, batch["target"]),
        ranks=2,
        microbatches=2,
        stages=["1"],
        options=it.Options(**options),
    )
    return pipe, batch


def test_a_thread_that_hangs_is_named(stuck):
    """Raised in the caller: which rank, where, in what line; the pipeline is over."""
    pipe, batch = pipeline(stuck, hang_s=0.5)
    pipe.step(batch)
    stuck.at_call = stuck.calls + 2

    with pytest.raises(PeerFailureError) as raised:
        pipe.step(batch)

    line, _, stack = str(raised.value).partition("\n")
    assert "rank 1 has not moved for" in line
    assert "(limit 0.5 s) at step 1 stage 1 micro-batch 1 action 1F1; threads cannot" in line
    assert "self.leave.wait()" in stack
    with pytest.raises(RunError, match="this pipeline ended with a failure: rank 1 has not"):
        pipe.step(batch)


def test_an_optimizer_that_hangs_is_named(stuck):
    """A rank steps its optimizer by itself: it may hang there as well."""

    class Waits(torch.optim.SGD):
        def step(self):
            if stuck.at_call is not None and len(self.param_groups[0]["params"]) == 2:
                stuck.leave.wait()
            return super().step()

    pipe, batch = pipeline(stuck, hang_s=0.5)
    optimizer = pipe.optimizer(lambda parameters: Waits(parameters, lr=0.1))
    for _ in range(2):
        float(pipe.step(batch))
        optimizer.step()
    pipe.state_dict()
    stuck.at_call = -1
    optimizer.step()

    with pytest.raises(PeerFailureError, match=r"rank [01] has not .* at step 1 action optimizer"):
        pipe.step(batch).item()


def test_an_optimizer_that_raises_on_one_rank_ends_the_others(stuck):
    """They would wait for a rank that does not come any more."""

    class Breaks(torch.optim.SGD):
        def step(self):
            if self.param_groups[0]["params"][0].shape == (3, 4):
                msg = "boom"
                raise ValueError(msg)
            return super().step()

    stuck.linear = nn.Linear(4, 3)
    pipe, batch = pipeline(stuck, width=3)
    optimizer = pipe.optimizer(lambda parameters: Breaks(parameters, lr=0.1))
    pipe.step(batch)
    optimizer.step()

    with pytest.raises((ValueError, PeerFailureError), match="boom"):
        pipe.step(batch).item()


def test_a_slow_rank_does_not_hang(stuck):
    """What takes five times as long as before is only slow."""
    pipe, batch = pipeline(stuck, hang_s=float("inf"))
    pipe.step(batch)
    stuck.at_call = stuck.calls + 1
    threading.Timer(1.0, stuck.leave.set).start()

    pipe.step(batch)

    pipe.close()


def test_patience_is_for_what_runs_for_the_first_time(monkeypatch):
    """A first step and a first evaluation may be compiled; the second ones are not."""
    told = []

    def note(watch, step):
        told.append((watch.rank, step))

    monkeypatch.setattr(LocalWatch, "be_patient", note)
    pipe, batch = pipeline(nn.Linear(4, 4))
    with pipe:
        for _ in range(2):
            pipe.step(batch)
            pipe.evaluate(batch)
    assert sorted(told) == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize(
    ("error", "last"), [(CheckpointError, BETWEEN_STEPS), (RunError, "save()")]
)
def test_a_save_that_failed_is_over(error, last):
    """It may be caught, and the script goes on; after another error the rank is where it failed."""

    class Places(list):
        begin = list.append

    places, msg = Places(), "disk full"
    home = Home((0,), torch.device("cpu"), 1, watch=places)
    with pytest.raises(error), home.doing("save()"):
        raise error(msg)
    assert places[-1] == last
