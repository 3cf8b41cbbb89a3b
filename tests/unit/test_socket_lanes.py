"""Sends and receives over one socket, without a network."""

import socket
import time

import torch

from intandem.runtime.transport.lanes import Transfer
from intandem.runtime.transport.protocol import POLL_S, Label
from intandem.runtime.transport.sockets import SocketIncoming, SocketOutgoing


def transfer():
    return Transfer(Label(0, "x"), "to rank 1")


def test_a_message_may_come_in_pieces():
    """A wait that ends half-way is taken up where it ended."""
    raw, end = socket.socketpair()
    lane, posted = SocketIncoming(end), transfer()
    lane.post(torch.empty(6, dtype=torch.uint8), posted)
    raw.sendall(b"\1\2")

    assert lane.take(POLL_S) is None
    assert posted.state == "begun"
    raw.sendall(b"\3\4\5\6\7")
    assert lane.take(POLL_S).tolist() == [1, 2, 3, 4, 5, 6]
    assert posted.state == "done"
    lane.post(torch.empty(1, dtype=torch.uint8), transfer())
    assert lane.take(POLL_S).tolist() == [7]
    raw.close()
    lane.close()


def test_a_closed_connection_is_returned_as_an_error():
    """Neither a wait for ever nor an exception."""
    raw, end = socket.socketpair()
    lane, posted = SocketIncoming(end), transfer()
    lane.post(torch.empty(6, dtype=torch.uint8), posted)
    raw.close()

    assert isinstance(lane.take(POLL_S), OSError)
    assert posted.state == "lost"
    lane.close()


def test_what_the_kernel_does_not_take_is_sent_later_in_order():
    """A send returns at once; later ones stay behind; joining waits for all of them."""
    raw, end = socket.socketpair()
    lane = SocketOutgoing(end, "lane")
    messages = [torch.full((2**22,), i, dtype=torch.uint8) for i in range(3)]
    transfers = [transfer() for _ in messages]
    for message, one in zip(messages, transfers, strict=True):
        lane.send(message, one)
    lane.close()

    assert transfers[-1].state == "begun"
    assert not lane.join(POLL_S)
    received = raw.makefile("rb").read(3 * 2**22)
    assert lane.join(5.0)
    assert received == b"".join(bytes([i]) * 2**22 for i in range(3))
    assert [one.state for one in transfers] == ["done"] * 3
    raw.close()


def test_sending_to_a_closed_connection_sets_the_error():
    """Whether on the rank's own thread or on the helper's."""
    raw, end = socket.socketpair()
    lane, one = SocketOutgoing(end, "lane"), transfer()
    lane.send(torch.zeros(2**24, dtype=torch.uint8), one)
    raw.close()

    deadline = time.monotonic() + 5
    while lane.error is None and time.monotonic() < deadline:
        lane.send(torch.zeros(1, dtype=torch.uint8), transfer())
        time.sleep(0.01)
    assert isinstance(lane.error, OSError)
    lane.close()
    assert lane.join(5.0)
