"""Whether two processes share memory: both know, and messages arrive either way."""

import socket
import time

import pytest
import torch
from processes import run_ranks
from test_distributed_transport import (
    SPEC,
    Alarm,
    both_ways,
    finish,
    joined,
    receive_what_is_wrong,
)

import intandem as it
from intandem.errors import ContractError
from intandem.runtime.transport.protocol import Label


def kinds_of_lanes():
    _, here = joined(both_ways(2))
    here.post(1 - here.rank, Label(0, "m"), SPEC)
    here.send(1 - here.rank, Label(0, "m"), (torch.ones(2, 3),), SPEC)
    value = float(here.wait(1 - here.rank, Label(0, "m"))[0].sum())
    found = [
        type(lane).__name__ for lanes in (here._outgoing, here._incoming) for lane in lanes.values()
    ]
    finish(here)
    return [*found, value]


SHARED = ["SharedOutgoing", "SharedIncoming", 6.0]
GLOO = ["Outgoing", "Incoming", 6.0]


@pytest.mark.parametrize(
    ("who", "expected"), [("11", SHARED), ("01", GLOO), ("10", GLOO), ("00", GLOO)]
)
def test_memory_is_shared_if_both_ends_can(who, expected, tmp_path, monkeypatch):
    """Where one cannot, or does not want to, both know, and the edge is Gloo's."""
    monkeypatch.setenv("WILLING", who)

    outcomes = run_ranks(kinds_of_lanes, 2, tmp_path)

    assert [(o.code, o.value, o.output) for o in outcomes] == [(0, expected, "")] * 2


def test_who_has_no_place_to_meet_uses_gloo(tmp_path, monkeypatch):
    """A folder whose path is too long for a socket."""
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setenv("WILLING", "1")
    monkeypatch.setenv("TMPDIR", str(deep))
    (work := tmp_path / "work").mkdir()

    outcomes = run_ranks(kinds_of_lanes, 2, work)

    assert [(o.code, o.value, o.output) for o in outcomes] == [(0, GLOO, "")] * 2


@pytest.mark.parametrize("rows", [1, 200_000])
def test_receiver_refuses_another_size(rows, tmp_path, monkeypatch):
    """Where memory is shared, a message of another length than was posted is told of as well."""
    monkeypatch.setenv("WILLING", "1")

    outcomes = run_ranks(receive_what_is_wrong, 2, tmp_path, rows)

    assert [o.code for o in outcomes] == [0, 0]
    assert outcomes[1].value == [
        ContractError.__name__,
        "rank 1 receiving from rank 0: expected 0F4>1 of step 5 with [(2, 3) float32], "
        f"got 0F3>1 of step 5 with other tensors, {192 + 12 * rows} bytes instead of 216",
    ]


def run_far_ahead(num_messages):
    membership, here = joined(both_ways(2), Alarm(20))
    peer, answer, ones = 1 - here.rank, Label(1, "answer"), (torch.ones(2, 3),)
    if here.rank == 0:
        lane = here._outgoing[1]
        lane._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100_000)
        here.post(peer, answer, SPEC)
        for number in range(num_messages):
            here.send(peer, Label(0, str(number)), ones, SPEC)
        unsaid = len(lane._unsaid)
        here.publish("all sent", b"")
        membership.store.get("all received")  # in the user's own code, so to speak
        here.wait(peer, answer)
    else:
        unsaid = None
        here.read("all sent")
        for number in range(num_messages):
            here.post(peer, Label(0, str(number)), SPEC)
            here.wait(peer, Label(0, str(number)))
        membership.store.set("all received", "yes")
        here.send(peer, answer, ones, SPEC)
    finish(here)
    return unsaid


def test_what_a_socket_has_no_room_for_is_said_whatever_the_sender_is_at(tmp_path, monkeypatch):
    """A sender is never held, and may wait in its own code for what depends on all it has sent."""
    monkeypatch.setenv("WILLING", "1")

    outcomes = run_ranks(run_far_ahead, 2, tmp_path, 600)

    assert [o.code for o in outcomes] == [0, 0]
    assert outcomes[0].value > 0


def square(output, batch):
    del batch
    return output.square().mean()


def predict_and_train():
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(4)))
    x = torch.randn(8, 4)
    with it.Pipeline(model, example=x, loss=square, microbatches=4) as pipe:
        with torch.inference_mode():
            pipe.predict(x)
        return [float(pipe.step(x)) for _ in range(2)]


def test_a_pipeline_used_in_inference_mode_trains_afterwards(tmp_path):
    """What was made for its messages is used again."""
    first, second = run_ranks(predict_and_train, 2, tmp_path)

    assert (first.code, second.code) == (0, 0), first.output + second.output
    assert first.value == second.value


class Slow(torch.autograd.Function):
    """Identity whose backward takes a while."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(0.002)
        return gradient


class SlowBackward(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(Slow.apply(self.linear(x)))


def meet_after_each_step(num_microbatches):
    torch.manual_seed(0)
    model = torch.nn.Sequential(SlowBackward(), torch.nn.Linear(4, 4))
    x = torch.randn(num_microbatches, 4)
    with it.Pipeline(
        model, example=x, loss=square, microbatches=num_microbatches, schedule="gpipe",
        stages=["1"],
    ) as pipe:  # fmt: skip
        for lane in pipe._assembly.ranks._transport._outgoing.values():
            lane._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        pipe.step(x)
        torch.distributed.barrier()
    return True


def test_ranks_meet_elsewhere_while_messages_are_still_to_be_taken(tmp_path):
    """The rank that is done has said more than a socket holds, and is in the user's own barrier."""
    outcomes = run_ranks(meet_after_each_step, 2, tmp_path, 300)

    assert [o.code for o in outcomes] == [0, 0], outcomes
