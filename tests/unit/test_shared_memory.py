"""An edge in shared memory, with both of its ends in one process."""

import os
import resource
import socket
import threading
from functools import partial

import pytest
import torch

from intandem.runtime.transport.lanes import Transfer
from intandem.runtime.transport.packing import Buffer, layout_of, pack, unpack
from intandem.runtime.transport.protocol import Label, TensorSpec
from intandem.runtime.transport.shared_memory import SharedIncoming, SharedOutgoing, _Saying

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


def num_slots(outgoing):
    return sum(pool.num_slots for pool in outgoing._slots._pools.values())


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

    assert num_slots(outgoing) <= 8  # three, four not given back yet, and doubled once
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


def shrink(end):
    """Have a socket hold a few hundred records at most, as many systems have it."""
    end._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100_000)


def test_a_send_does_not_wait_however_far_the_receiver_is_behind(ends):
    """What a socket has no room for is said later, whatever the rank is at, and in order."""
    outgoing, incoming = ends
    shrink(outgoing)
    for number in range(600):
        assert send(outgoing, number) == "done"
    unsaid = len(outgoing._unsaid)
    closed_before = outgoing.join(0.01)
    received = [receive(incoming, number) for number in range(600)]
    send(outgoing, 600)
    closed_after = outgoing.join(1)

    assert unsaid > 0
    assert (closed_before, closed_after) == (False, True)
    assert received == list(range(600))
    assert receive(incoming, 600) == 600


def test_many_messages_need_few_descriptors(ends):
    """Slots are made as many at a time as there are: a process may have a thousand open files."""
    outgoing, _ = ends
    before = num_descriptors()
    takes = [outgoing._slots.take(1000, lambda: None) for _ in range(200)]

    assert sum(map(bool, (taken.descriptors for taken in takes))) < 10
    assert 200 <= num_slots(outgoing) < 400
    assert num_descriptors() < before + 10


def test_slots_are_given_back_later_if_there_is_no_room_to_say_so(ends):
    """A receiver that comes late has more to give back than a socket holds."""
    outgoing, incoming = ends
    shrink(incoming)
    for number in range(3000):
        send(outgoing, number)
    for number in range(3000):
        receive(incoming, number)
    refused = len(incoming._done_with)
    before = num_slots(outgoing)
    for number in range(5000):
        send(outgoing, number)
        receive(incoming, number)

    assert refused > 4
    assert num_slots(outgoing) == before


def test_a_pass_gives_back_memory_that_it_did_not_need(ends):
    """Of two passes, the first was further ahead. Memory that was given back reads as zeros."""
    outgoing, incoming = ends
    for _ in range(8):
        send(outgoing, 7)
    for _ in range(8):
        receive(incoming, 7)
    outgoing.tidy()  # four at least are known to be free, and were needed
    needed = holding_numbers(outgoing)
    for number in range(6):
        send(outgoing, number)
        receive(incoming, number)
    outgoing.tidy()
    left = holding_numbers(outgoing)
    for number in range(20, 30):
        send(outgoing, number)
    received = [receive(incoming, number) for number in range(20, 30)]

    assert needed == 8
    assert 0 < left < 8
    assert received == list(range(20, 30))


def holding_numbers(outgoing):
    """How many slots hold something else than zeros."""
    return sum(int(buffer.flat.any()) for buffer in outgoing._slots._buffers)


def test_slots_outlive_inference_mode(ends):
    """Those that were made in it serve a training step as well."""
    outgoing, incoming = ends
    with torch.inference_mode():
        send(outgoing, 1)
        receive(incoming, 1)
    for number in range(2, 9):
        send(outgoing, number)
        assert receive(incoming, number) == number


def test_a_slot_holds_no_graph(ends):
    """What was sent is nobody's result."""
    outgoing, incoming = ends
    transfer, x = Transfer(Label(0, "1"), "to rank 1"), torch.ones(3, dtype=torch.float64)
    payload = (x.requires_grad_() * 2,)
    outgoing.send(LAYOUT, partial(pack, payload, LAYOUT, Label(0, "1")), transfer)

    assert receive(incoming, 1) == 2
    for number in range(2, 12):
        send(outgoing, number)
        receive(incoming, number)
    assert not any(t.requires_grad for b in outgoing._slots._buffers for t in b.tensors(LAYOUT))


def test_without_memory_to_share_the_way_out_is_named(ends, monkeypatch):
    """A process that has too many open files."""
    outgoing, _ = ends

    def refuse(name):
        raise OSError(24, "Too many open files", name)

    monkeypatch.setattr(os, "memfd_create", refuse)

    assert send(outgoing, 1) == "lost"
    assert "ulimit -n" in str(outgoing.error)
    assert "shared_memory=False" in str(outgoing.error)


def test_a_descriptor_that_cannot_be_received_is_told_of(ends):
    """Python leaves it out where the process may open no more files."""
    outgoing, incoming = ends
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    send(outgoing, 1)
    post(incoming, 1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        found = incoming.take(1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert isinstance(found, RuntimeError)
    assert "ulimit -n" in str(found)


def test_a_receiver_that_is_gone_is_an_error_of_the_edge(ends):
    """Of the next message, at the latest of the one that finds no free slot."""
    outgoing, incoming = ends
    incoming.close()

    states = [send(outgoing, number) for number in range(3)]

    assert states[-1] == "lost"
    assert isinstance(outgoing.error, RuntimeError)
    assert outgoing.join(0.01)


def test_a_receiver_that_has_had_everything_may_be_gone(ends):
    """That is no error until something is sent to it."""
    outgoing, incoming = ends
    send(outgoing, 1)
    receive(incoming, 1)
    incoming.close()
    outgoing.tidy()

    assert outgoing.error is None
    assert outgoing.join(0.01)


def test_a_source_that_is_gone_leaves_what_it_has_sent(ends):
    """Then comes the loss."""
    outgoing, incoming = ends
    send(outgoing, 7)
    outgoing.close()
    assert outgoing.join(1)

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


class Slow:
    """A connection whose first record takes until it is let through."""

    def __init__(self):
        self.begun, self.through, self.said = threading.Event(), threading.Event(), []

    def send(self, record, flags):
        del flags
        if not self.begun.is_set():
            self.begun.set()
            assert self.through.wait(10)
        self.said.append(record)


def test_no_thread_says_a_record_before_another_is_said(ends):
    """A helper says what is left while the rank sends; order is what tells messages apart."""
    outgoing, _ = ends
    slow = outgoing._connection = Slow()
    both = [
        threading.Thread(target=outgoing._say, args=(_Saying(record, []),))
        for record in (b"first", b"second")
    ]
    both[0].start()
    assert slow.begun.wait(10)
    both[1].start()
    both[1].join(0.2)  # it would be through by now
    slow.through.set()
    for thread in both:
        thread.join(10)

    assert slow.said == [b"first", b"second"]
