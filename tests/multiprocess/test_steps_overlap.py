"""A step is no barrier: a process goes on while others still compute weight gradients."""

import time
from pathlib import Path

import pytest
import torch
from processes import run_ranks
from torch import nn
from torch.nn import functional as F

import intandem as it
from intandem.runtime import backward
from intandem.runtime.tally import LossTally

PATIENCE_S = 20.0


def wait_for(path):
    """Tell whether ``path`` appears in time."""
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return path.exists()


def step_while_the_other_is_held(schedule, folder):
    """Rank 1 ends the last weight gradient of a step when rank 0 has left that step."""
    left = Path(folder) / "left"
    torch.manual_seed(0)
    batch = torch.randn(8, 4)
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    order = it.build_schedule(schedule, num_ranks=2, num_microbatches=4)
    with it.Pipeline(
        model, example=batch, loss=F.mse_loss, microbatches=4, schedule=schedule
    ) as pipe:
        rank, number, was_left = torch.distributed.get_rank(), 0, None
        add_up = backward.backward_weights

        def held(pending):
            nonlocal number, was_left
            number += 1
            if number == 4:
                was_left = wait_for(left)
            add_up(pending)

        if rank == 1:
            backward.backward_weights = held
        float(pipe.step(batch))
        if rank == 0:
            left.touch()
        assert str(order.actions[1][-1]) == "1W3"
        float(pipe.step(batch))
    return was_left


@pytest.mark.timeout(120)
def test_a_rank_leaves_a_step_before_others_end_it(tmp_path):
    """Rank 0 has its own gradients and knows the loss."""
    found = run_ranks(step_while_the_other_is_held, 2, tmp_path, "zb-h1", str(tmp_path))
    assert [outcome.code for outcome in found] == [0, 0], found
    assert found[1].value is True


def step_while_losses_are_read(folder):
    """Losses that come late from a device: only when rank 1 has computed its last action."""
    computed = Path(folder) / "computed"
    torch.manual_seed(0)
    batch = torch.randn(8, 4)
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    with torch.no_grad():
        expected = float(F.mse_loss(model(batch), batch))
    found, number, add_up = [], 0, backward.backward_weights

    def add_up_and_say(pending):
        nonlocal number
        add_up(pending)
        number += 1
        if number == 4 and torch.distributed.get_rank() == 1:
            computed.touch()

    backward.backward_weights = add_up_and_say
    LossTally.begin_reading = lambda tally: lambda: found.append(wait_for(computed))
    with it.Pipeline(
        model, example=batch, loss=F.mse_loss, microbatches=4, schedule="zb-h1"
    ) as pipe:
        loss = float(pipe.step(batch))
    return found, loss, expected


@pytest.mark.timeout(120)
def test_losses_that_come_late_hold_nobody(tmp_path):
    """The last stage computes on while its losses are on their way from a device."""
    outcomes = run_ranks(step_while_losses_are_read, 2, tmp_path, str(tmp_path))
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    assert [outcome.value[0] for outcome in outcomes] == [[], [True]]
    for outcome in outcomes:
        _, loss, expected = outcome.value
        assert loss == pytest.approx(expected, rel=1e-6)


def leave_while_the_other_is_held(folder):
    """Tell whether rank 1 had ended the last step when rank 0 had left the run."""
    left, ended = Path(folder) / "left", Path(folder) / "ended"
    torch.manual_seed(0)
    batch = torch.randn(8, 4)
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    pipe = it.Pipeline(model, example=batch, loss=F.mse_loss, microbatches=4, schedule="zb-h1")
    rank, number, add_up = torch.distributed.get_rank(), 0, backward.backward_weights

    def held(pending):
        nonlocal number
        number += 1
        if number == 4:
            wait_for(left)
            time.sleep(1)
        add_up(pending)
        if number == 4:
            ended.touch()

    if rank == 1:
        backward.backward_weights = held
    float(pipe.step(batch))
    if rank == 0:
        left.touch()
    pipe.close()
    return ended.exists()


@pytest.mark.timeout(120)
def test_a_rank_stays_until_the_last_step_is_over(tmp_path):
    """Its process may host what the others need for it."""
    found = run_ranks(leave_while_the_other_is_held, 2, tmp_path, str(tmp_path))
    assert [outcome.code for outcome in found] == [0, 0], found
    assert [outcome.value for outcome in found] == [True, True]
