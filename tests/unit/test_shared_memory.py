"""An edge in shared memory, with both of its ends in one process."""

import os
import socket
from functools import partial

import pytest
import torch

from intandem.runtime.transport.lanes import Transfer
from intandem.runtime.transport.packing import Buffer, layout_of, pack, unpack
from intandem.runtime.transport.protocol import Label, TensorSpec
from intandem.runtime.transport.shared_memory import SharedIncoming, SharedOutgoing

LAYOUT = layout_of((TensorSpec((3,), torch.float64),))
LONG = layout_of((TensorSpec((100_000,), torch.float64),))


@pytest.fixture
def ends():
    """What sends and what receives."""
    source, target = socket.socketpair()
    with source, target:
        yield SharedOutgoing(source), SharedIncoming(target)


def send(outgoing, number, layout=LAYOUT):
    (place,) = layout.places
    payload = (torch.full(place.spec.shape, float(number), dtype=torch.float64),)
    transfer = Transfer(Label(0, str(number)), "to rank 1")
    outgoing.send(layout, partial(pack, payload, layout, Label(0, str(number))), transfer)
    return transfer.state


def post(incoming, number, layout=LAYOUT):
    transfer = Transfer(Label(0, str(number)), "from rank 0")
    incoming.post(layout, transfer)
    return transfer


def receive(incoming, number, layout=LAYOUT):
    """The number that arrives."""
    transfer = post(incoming, number, layout)
    arrived = incoming.take(10)
    assert isinstance(arrived, Buffer), arrived
    (tensor,) = unpack(arrived, layout, Label(0, str(number)))
    assert transfer.state == "done"
    assert tensor.min() == tensor.max()
    return tensor[0]


def num_descriptors():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("layout", [LAYOUT, LONG], ids=["short", "long"])
def test_slots_are_used_again(ends, layout):
    """As many as messages were on their way at once, and some that are not known to be free."""
    outgoing, incoming = ends
    before = num_descriptors()
    for number in range(0, 300, 3):
        for ahead in range(3):
            assert send(outgoing, number + ahead, layout) == "done"
        for ahead in range(3):
            assert receive(incoming, number + ahead, layout) == number + ahead

    assert len(outgoing._slots) <= 3 + 4
    assert num_descriptors() == before  # memory stays mapped without


def test_what_arrived_is_the_receivers(ends):
    """What is sent after it does not change it."""
    outgoing, incoming = ends
    send(outgoing, 1)
    post(incoming, 1)
    (first,) = unpack(incoming.take(10), LAYOUT, Label(0, "1"))
    for number in range(2, 20):
        send(outgoing, number)
        receive(incoming, number)

    assert first.tolist() == [1.0] * 3


def test_a_send_does_not_wait_however_far_the_receiver_is_behind(ends):
    """More than a socket holds; what could not be said is said with the next, or at the end."""
    outgoing, incoming = ends
    outgoing._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100_000)
    for number in range(600):
        assert send(outgoing, number) == "done"
    unsaid = len(outgoing._unsaid)
    outgoing.close()
    closed_before = outgoing.join(0.01)
    received = []
    for number in range(600):
        received.append(receive(incoming, number))
        outgoing.settle()
    closed_after = outgoing.join(0.01)

    assert unsaid > 0
    assert (closed_before, closed_after) == (False, True)
    assert received == list(range(600))


def test_a_receiver_that_is_gone_is_an_error_of_the_edge(ends):
    """Of the next message, at the latest of the one that finds no free slot."""
    outgoing, incoming = ends
    incoming.close()

    states = [send(outgoing, number) for number in range(3)]

    assert states[-1] == "lost"
    assert isinstance(outgoing.error, RuntimeError)
    assert outgoing.join(0.01)


def test_a_source_that_is_gone_leaves_what_it_has_sent(ends):
    """Then comes the loss."""
    outgoing, incoming = ends
    send(outgoing, 7)
    outgoing.close()
    assert outgoing.join(1)
    outgoing._connection.close()

    assert receive(incoming, 7) == 7
    lost = post(incoming, 8)
    error = incoming.take(1)
    assert isinstance(error, RuntimeError)
    assert "closed by peer" in str(error)
    assert lost.state == "lost"


def test_nothing_in_time_is_none(ends):
    """So that the rank looks whether the run has failed elsewhere."""
    _, incoming = ends
    post(incoming, 1)

    assert incoming.take(0.001) is None
