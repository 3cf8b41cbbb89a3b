"""When sends are waited for: on a communicator that does nothing."""

import pytest
import torch

from intandem.runtime.transport.lanes import Outgoing, Transfer
from intandem.runtime.transport.packing import Layout
from intandem.runtime.transport.protocol import Label

HANG_S = 10.0


class Waited:
    """A send, and a communicator of such sends: waiting for one is all that happens."""

    def send(self, flat):
        del flat
        return Waited()

    def wait(self):
        pass


def layout_of_bytes(num_bytes):
    """A message of so many bytes, with nothing in it."""
    return Layout((), 128, num_bytes, b"")


def states(sizes, then):
    """What is known of sends of so many bytes once ``then`` was done with their edge."""
    lane = Outgoing(Waited(), "send 0->1", torch.device("cpu"))
    sends = [Transfer(Label(0, str(index)), "to rank 1") for index in range(len(sizes))]
    for size, transfer in zip(sizes, sends, strict=True):
        lane.send(layout_of_bytes(size), lambda buffer: None, transfer)
    then(lane)
    lane._jobs.put(None)  # the thread ends after what it was given
    assert lane.join(HANG_S)
    return [transfer.state for transfer in sends]


@pytest.mark.parametrize(
    ("sizes", "num_done"),
    [([100] * 7, 0), ([100] * 8, 8), ([100] * 9, 8), ([100, 2**20], 2), ([2**20 + 1, 100], 1)],
)
def test_short_sends_are_waited_for_several_at_a_time(sizes, num_done):
    """Eight of them, or as many as hold a megabyte: their memory is not kept for longer."""
    begun = ["begun"] * (len(sizes) - num_done)

    assert states(sizes, lambda lane: None) == ["done"] * num_done + begun


@pytest.mark.parametrize("then", [Outgoing.settle, Outgoing.close])
def test_none_is_forgotten(then):
    """When the connection is looked into, and at the end."""
    assert states([100] * 3, then) == ["done"] * 3
