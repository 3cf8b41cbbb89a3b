"""Messages between ranks that are threads of one process."""

import threading
import time

import pytest
import torch

from intandem.errors import ContractError, PeerFailureError, RunError
from intandem.runtime.local_watch import local_watches
from intandem.runtime.transport.local import local_transports
from intandem.runtime.transport.protocol import MAX_FACTS, Label, TensorSpec, exchange
from intandem.runtime.watch import Position

SPEC = (TensorSpec((2, 3), torch.float32),)
HERE = Position(step=4, slot=7, stage=1, microbatch=3, doing="1F3")


def pair():
    watches = local_watches(2)
    return watches, local_transports(watches)


def in_thread(function):
    """Start ``function``; the returned call waits for it and gives its result or raises."""
    outcome = []

    def body():
        try:
            outcome.append((function(), None))
        except Exception as error:
            outcome.append((None, error))

    thread = threading.Thread(target=body, daemon=True)
    thread.start()

    def result():
        thread.join(10)
        value, error = outcome[0]
        if error is not None:
            raise error
        return value

    return result


def test_tensors_arrive_as_they_are_in_order():
    """First in first out per directed pair, by reference; None stays None."""
    _, (a, b) = pair()
    first, second = torch.ones(2, 3), torch.zeros(2, 3)
    two = SPEC + SPEC
    for tag in ("0F0>1", "0F1>1"):
        b.post(0, Label(0, tag), two)
    a.send(1, Label(0, "0F0>1"), (first, None), two)
    a.send(1, Label(0, "0F1>1"), (second, first), two)

    assert b.wait(0, Label(0, "0F0>1"))[0] is first
    assert b.wait(0, Label(0, "0F1>1"))[0] is second


def test_directions_do_not_wait_for_each_other():
    """Both ranks may send first."""
    _, (a, b) = pair()
    label = Label(0, "x")
    for here, peer in ((a, 1), (b, 0)):
        here.post(peer, label, SPEC)
        here.send(peer, label, (torch.full((2, 3), float(peer)),), SPEC)

    assert a.wait(1, label)[0].max() == 0
    assert b.wait(0, label)[0].max() == 1


@pytest.mark.parametrize(
    ("tensors", "found"),
    [
        ((torch.ones(3, 2),), r"tensor 0 is \(3, 2\) float32, expected \(2, 3\) float32"),
        ((torch.ones(2, 3).long(),), r"tensor 0 is \(2, 3\) int64, expected \(2, 3\) float32"),
        ((), r"0 tensor\(s\), expected 1"),
    ],
)
def test_sender_refuses_what_the_contract_does_not_say(tensors, found):
    """The message names the label, both ranks, the tensor, and both shapes and dtypes."""
    _, (a, _) = pair()

    with pytest.raises(ContractError, match=f"0F3>1 of step 5 from rank 0 to rank 1: {found}"):
        a.send(1, Label(5, "0F3>1"), tensors, SPEC)


def test_sender_names_every_wrong_tensor():
    """All findings, not the first."""
    _, (a, _) = pair()
    wrong = torch.ones(1)

    with pytest.raises(ContractError, match=r"tensor 0 is \(1,\).*; tensor 2 is \(1,\)"):
        a.send(1, Label(5, "0F3>1"), (wrong, torch.ones(2, 3), wrong), SPEC * 3)


def test_receiver_refuses_another_label():
    """Something else in its place is named, with what was expected."""
    _, (a, b) = pair()
    b.post(0, Label(5, "0F4>1"), SPEC)
    a.send(1, Label(5, "0F3>1"), (torch.ones(2, 3),), SPEC)

    with pytest.raises(
        ContractError, match=r"rank 1 expected 0F4>1 of step 5 .* from rank 0, got 0F3>1 of step 5"
    ):
        b.wait(0, Label(5, "0F4>1"))


def test_receiver_refuses_another_contract():
    """Two ends that recorded different models do not get along silently."""
    _, (a, b) = pair()
    b.post(0, Label(5, "x"), (TensorSpec((6,), torch.float32),))
    a.send(1, Label(5, "x"), (torch.ones(2, 3),), SPEC)

    with pytest.raises(ContractError, match=r"\[\(6,\) float32\] from rank 0, got .*\(2, 3\)"):
        b.wait(0, Label(5, "x"))


def test_waiting_in_another_order_than_posted_is_an_error():
    """A wait must be for the oldest post of its peer."""
    _, (_, b) = pair()
    b.post(0, Label(0, "x"), SPEC)

    with pytest.raises(RunError, match="waits for y of step 0 from rank 0, but posted x of step 0"):
        b.wait(0, Label(0, "y"))


def test_failure_elsewhere_ends_a_wait_at_once():
    """The message names culprit, position and cause; the original exception is attached."""
    (wa, _), (_, b) = pair()
    b.post(0, Label(0, "x"), SPEC)
    waiting = in_thread(lambda: b.wait(0, Label(0, "x")))
    time.sleep(0.05)
    wa.at(HERE)
    wa.fail(original := ValueError("boom"))

    with pytest.raises(
        PeerFailureError,
        match="rank 0 failed at step 4 stage 1 micro-batch 3 action 1F3: ValueError: boom",
    ) as caught:
        waiting()
    assert caught.value.__cause__ is original


def test_failure_elsewhere_ends_a_read():
    """The board does not hold a rank either."""
    (wa, _), (_, b) = pair()
    reading = in_thread(lambda: b.read("never"))
    wa.fail(ValueError("boom"))

    with pytest.raises(PeerFailureError, match="rank 0 failed before its first action"):
        reading()


def test_a_rank_that_left_ends_a_wait():
    """Good order or not: what it did not send will not come."""
    _, (a, b) = pair()
    b.post(0, Label(0, "x"), SPEC)
    b.post(0, Label(0, "y"), SPEC)
    a.send(1, Label(0, "x"), (torch.ones(2, 3),), SPEC)
    a.close()

    assert b.wait(0, Label(0, "x"))[0].sum() == 6
    with pytest.raises(PeerFailureError, match="rank 0 left the run; rank 1 still waits for y"):
        b.wait(0, Label(0, "y"))
    with pytest.raises(PeerFailureError, match=r"all other ranks left .* still reads 'k'"):
        b.read("k")


def test_first_failure_wins_and_spares_the_culprit():
    """The culprit's own exception is on its way already; later failures are consequences."""
    one, two, three = local_watches(3)
    two.fail(ValueError("first"))
    three.fail(ValueError("second"))

    two.check()
    for watch in (one, three):
        with pytest.raises(PeerFailureError, match=r"rank 1 .*first"):
            watch.check()


def test_positions_are_readable_from_every_rank():
    """Each rank sees where all of them are."""
    one, two = local_watches(2)
    two.at(HERE)

    assert one.positions == (None, HERE)


def test_exchange_gives_every_rank_all_values():
    """In rank order."""
    transports = local_transports(local_watches(3))
    results = [in_thread(lambda t=t: exchange(t, "k", bytes([t.rank]))) for t in transports]

    assert [list(r()) for r in results] == [[b"\0", b"\1", b"\2"]] * 3


def test_board_stays_bounded():
    """Old facts make room; one that is there is not written again."""
    _, (a, b) = pair()
    for i in range(2 * MAX_FACTS):
        a.publish(f"loss/{i}", b"x")

    assert len(a._hub.facts) == MAX_FACTS
    assert b.read(f"loss/{2 * MAX_FACTS - 1}") == b"x"
    with pytest.raises(RunError, match=f"'loss/{2 * MAX_FACTS - 1}'.* on the board already"):
        b.publish(f"loss/{2 * MAX_FACTS - 1}", b"y")


def test_received_tensors_go_to_the_rank_s_device():
    """Only where a device is given."""
    transports = local_transports(local_watches(2), [torch.device("cpu"), torch.device("meta")])
    transports[1].post(0, Label(0, "x"), SPEC)
    transports[0].send(1, Label(0, "x"), (torch.ones(2, 3),), SPEC)

    assert transports[1].wait(0, Label(0, "x"))[0].device.type == "meta"
