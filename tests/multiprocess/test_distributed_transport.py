"""Messages between real processes: in shared memory, and over Gloo on the loopback interface."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import run_ranks

from intandem.errors import ContractError, PeerFailureError, PipelineError, RunError
from intandem.runtime.transport.distributed import connect
from intandem.runtime.transport.edges import Edge
from intandem.runtime.transport.process_group import join_process_group
from intandem.runtime.transport.protocol import MAX_FACTS, Label, TensorSpec, exchange

CPU = torch.device("cpu")
SPEC = (TensorSpec((2, 3), torch.float32),)
MIXED = (*SPEC, TensorSpec((4,), torch.int64), TensorSpec((0, 2), torch.bfloat16))


class Calm:
    """A watch that never hears of a failure; it keeps what it is told to look into."""

    def __init__(self):
        self.suspicions = []

    def at(self, position):
        pass

    def fail(self, error):
        pass

    def tick(self):
        pass

    def suspect(self, reason):
        self.suspicions.append(reason)

    def check(self):
        pass

    def close(self):
        pass


class Alarm(Calm):
    """A watch that hears of a failure some time after it was made."""

    def __init__(self, delay_s):
        super().__init__()
        self.due = time.monotonic() + delay_s

    def check(self):
        if time.monotonic() > self.due:
            message = "rank 9 failed at step 1"
            raise PeerFailureError(message)


def both_ways(num_ranks):
    """Edges of a ring, in both directions."""
    pairs = [(r, (r + 1) % num_ranks) for r in range(num_ranks)]
    return {Edge(a, b) for a, b in pairs + [p[::-1] for p in pairs] if a != b}


def joined(edges, watch=None):
    membership = join_process_group(CPU, timeout_s=30)
    watch, shared = watch or Calm(), is_willing(membership.rank)
    here = connect(membership, edges, watch, device=CPU, timeout_s=30, shared_memory=shared)
    return membership, here


def is_willing(rank):
    """Whether a rank wants to share memory: ``WILLING`` has a digit for each, or one for all."""
    digits = os.environ["WILLING"]
    return digits[rank % len(digits)] == "1"


@pytest.fixture(params=["1", "0"], ids=["shared", "gloo"], autouse=True)
def willing(request, monkeypatch):
    """All ranks share memory; then none."""
    monkeypatch.setenv("WILLING", request.param)


def finish(transport):
    transport.close()
    dist.destroy_process_group()


def raised(call):
    """Type and text of what ``call`` raises, and after how many seconds."""
    begin = time.monotonic()
    try:
        call()
    except PipelineError as error:
        return type(error).__name__, str(error), time.monotonic() - begin
    return None


def send_round_a_ring():
    _, here = joined(both_ways(int(os.environ["WORLD_SIZE"])))
    right, left = (here.rank + 1) % here.num_ranks, (here.rank - 1) % here.num_ranks
    seen, label = here.rank, Label(0, "ring")
    for step in range(here.num_ranks):
        label = Label(step, "ring")
        here.post(left, label, SPEC)
        here.send(right, label, (torch.full((2, 3), float(seen)),), SPEC)
        seen = int(here.wait(left, label)[0][0, 0])
    finish(here)
    return seen


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ring(num_ranks, tmp_path):
    """Ranks with different neighbours connect; a value goes round and comes back."""
    outcomes = run_ranks(send_round_a_ring, num_ranks, tmp_path)

    assert [(o.code, o.value, o.output) for o in outcomes] == [
        (0, rank, "") for rank in range(num_ranks)
    ]


def talk_both_ways(num_messages):
    _, here = joined(both_ways(2))
    peer = 1 - here.rank
    for i in range(num_messages):
        value = torch.arange(6.0).view(3, 2).T + 1000 * here.rank + i
        here.send(peer, Label(i, "m"), (value, None if i % 3 else torch.arange(4), None), MIXED)
    for i in range(min(2, num_messages)):
        here.post(peer, Label(i, "m"), MIXED)
    for i in range(num_messages):
        value, maybe, empty = here.wait(peer, Label(i, "m"))
        assert torch.equal(value, torch.arange(6.0).view(3, 2).T + 1000 * peer + i)
        assert (maybe is None) == bool(i % 3)
        assert empty is None
        if i + 2 < num_messages:
            here.post(peer, Label(i + 2, "m"), MIXED)
    transfers = here.transfers
    finish(here)
    return transfers


def test_two_hundred_messages_both_ways_at_once(tmp_path):
    """Sends do not wait for receives, directions not for each other; order and None are kept."""
    outcomes = run_ranks(talk_both_ways, 2, tmp_path, 200)

    assert [o.code for o in outcomes] == [0, 0]
    for rank, outcome in enumerate(outcomes):
        assert len(outcome.value) == 32
        assert outcome.value[-1] == f"m of step 199 from rank {1 - rank}: done"


def exchange_facts():
    membership, here = joined(())
    values = [v.hex() for v in exchange(here, "k", bytes([0, 255, here.rank]))]
    empty = exchange(here, "empty", b"")
    if here.rank > 0:  # rank 0's facts may go only when all have read them
        here.publish(f"read/{here.rank}", b"1")
    for peer in range(1, here.num_ranks if here.rank == 0 else 0):
        here.read(f"read/{peer}")
    for i in range(MAX_FACTS + 5 if here.rank == 0 else 0):
        here.publish(f"loss/{i}", b"x")
    exchange(here, "end", b"1")
    old, new = (membership.store.check([f"board/{k}"]) for k in ("loss/0", f"loss/{MAX_FACTS}"))
    exchange(here, "looked", b"1")
    finish(here)
    return [*values, *map(len, empty), old, new]


def test_board(tmp_path):
    """Facts of any bytes reach every rank; the oldest of a rank make room."""
    outcomes = run_ranks(exchange_facts, 3, tmp_path)

    expected = ["00ff00", "00ff01", "00ff02", 0, 0, 0, False, True]
    assert [(o.code, o.value) for o in outcomes] == [(0, expected)] * 3


def send_what_is_wrong():
    _, here = joined(both_ways(2))
    found = None
    if here.rank == 0:
        found = [
            raised(lambda: here.send(1, Label(5, "0F3>1"), (torch.ones(3, 2),), SPEC))[:2],
            raised(lambda: here.send(2, Label(5, "0F3>2"), (torch.ones(2, 3),), SPEC))[:2],
            raised(lambda: here.wait(1, Label(5, "0F3>2")))[:2],
        ]
    finish(here)
    return found


def test_sender_refuses_what_the_contract_does_not_say(tmp_path):
    """Before anything is sent: message, ranks, tensor, shapes; and an edge that is not there."""
    outcomes = run_ranks(send_what_is_wrong, 2, tmp_path)

    assert [o.code for o in outcomes] == [0, 0]
    assert outcomes[0].value == [
        [
            ContractError.__name__,
            "message 0F3>1 of step 5 from rank 0 to rank 1: "
            "tensor 0 is (3, 2) float32, expected (2, 3) float32",
        ],
        [RunError.__name__, "rank 0 has no edge 0->2; name it when connecting"],
        [
            RunError.__name__,
            "rank 0 waits for 0F3>2 of step 5 from rank 1, but posted nothing first",
        ],
    ]


def receive_what_is_wrong(rows):
    _, here = joined(both_ways(2))
    wanted = Label(5, "0F4>1")
    if here.rank == 0:
        sent = (TensorSpec((rows, 3), torch.float32),)
        here.send(1, Label(5, "0F3>1"), (torch.ones(rows, 3),), sent)
        found = None
    else:
        here.post(0, wanted, SPEC)
        found = raised(lambda: here.wait(0, wanted))[:2]
    finish(here)
    return found


def test_receiver_refuses_another_label(tmp_path):
    """On arrival: who received what from whom, and what was expected."""
    outcomes = run_ranks(receive_what_is_wrong, 2, tmp_path, 2)

    assert [o.code for o in outcomes] == [0, 0]
    assert outcomes[1].value == [
        ContractError.__name__,
        "rank 1 receiving from rank 0: expected 0F4>1 of step 5 with [(2, 3) float32], "
        "got 0F3>1 of step 5",
    ]


def outlive_a_peer(verdict_after_s):
    watch = Calm() if verdict_after_s is None else Alarm(verdict_after_s)
    _, here = joined(both_ways(2), watch)
    sent = Label(5, "1B3>0")
    if here.rank == 0:
        here.post(1, sent, SPEC)
        here.wait(1, sent)
        exchange(here, "ready", b"")
        os.kill(os.getpid(), signal.SIGKILL)
    label = Label(5, "0F4>1")
    here.send(0, sent, (torch.ones(2, 3),), SPEC)
    here.post(0, label, SPEC)
    exchange(here, "ready", b"")
    waiting = raised(lambda: here.wait(0, label))
    begin = time.monotonic()
    here.close()
    return [*waiting, time.monotonic() - begin, watch.suspicions]


def test_a_peer_that_dies_ends_a_wait(tmp_path):
    """Without a verdict the lost connection is reported, with peer, label and last transfers."""
    dead, alive = run_ranks(outlive_a_peer, 2, tmp_path, None, timeout_s=40)
    kind, text, waited_s, closing_s, suspicions = alive.value

    assert dead.code == -signal.SIGKILL
    assert alive.code == 0
    assert kind == PeerFailureError.__name__
    assert "rank 1 lost its connection waiting for 0F4>1 of step 5 from rank 0" in text
    assert "0F4>1 of step 5 from rank 0: lost" in text
    assert "1B3>0 of step 5 to rank 0: done" in text
    assert [s in text for s in suspicions] == [True]
    assert waited_s < 10
    assert closing_s < 5


def test_a_verdict_ends_a_wait_before_the_connection_is_given_up(tmp_path):
    """What the watch says comes first: it names the culprit."""
    _, alive = run_ranks(outlive_a_peer, 2, tmp_path, 3.0, timeout_s=40)

    assert alive.value[:2] == [PeerFailureError.__name__, "rank 9 failed at step 1"]


def wait_for_what_never_comes():
    membership, here = joined(both_ways(2))
    label, big = Label(0, "x"), (TensorSpec((2**24,), torch.uint8),)
    here._watch = Alarm(0.5)
    found = []
    if here.rank == 0:
        for _ in range(2):
            here.send(1, label, (torch.zeros(2**24, dtype=torch.uint8),), big)
        here.post(1, label, SPEC)
        found.append(raised(lambda: here.wait(1, label)))
    found.append(raised(lambda: here.read("k")))
    begin = time.monotonic()
    here.close()
    found.append(("", "", time.monotonic() - begin))
    if here.rank == 1:  # rank 0 still waits inside Gloo: end after it, lest it wakes as it ends
        wait_for_the_end_of(int(membership.store.get("process of rank 0")))
    else:
        membership.store.set("process of rank 0", str(os.getpid()))
    return found


def wait_for_the_end_of(process, limit_s=30.0):
    """Wait until a process has ended, whether anybody has asked for its exit code or not."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.02)


def test_a_failure_elsewhere_ends_every_wait(tmp_path):
    """A wait, a read and a close with sends pending all end promptly."""
    outcomes = run_ranks(wait_for_what_never_comes, 2, tmp_path)

    assert [o.output for o in outcomes] == ["", ""]
    for outcome, num_waits in zip(outcomes, (2, 1), strict=True):
        *waits, closing = outcome.value
        heard = [PeerFailureError.__name__, "rank 9 failed at step 1"]
        assert [w[:2] for w in waits] == [heard] * num_waits
        assert max(w[2] for w in (*waits, closing)) < 3


def step_over_a_large_message():
    _, here = joined(both_ways(2))
    spec = (TensorSpec((3, 2**22), torch.float32),)
    labels = [Label(0, "large"), Label(0, "larger"), Label(1, "small")]
    peer = 1 - here.rank
    begin = time.monotonic()
    for i, label in enumerate(labels[:2]):
        here.send(peer, label, (torch.full((3, 2**22), float(i)),), spec)
    here.send(peer, labels[2], (torch.ones(2, 3),), SPEC)
    returned_s = time.monotonic() - begin
    exchange(here, "all sent", b"")
    values = []
    for label, contract in zip(labels, (spec, spec, SPEC), strict=True):
        here.post(peer, label, contract)
        (tensor,) = here.wait(peer, label)
        values.append([float(tensor.min()), float(tensor.max())])
    finish(here)
    return [returned_s, *values]


def test_sends_of_any_size_do_not_wait_for_the_receiver(tmp_path):
    """Both ranks send 48 MB twice before either receives; a small one after them stays behind."""
    outcomes = run_ranks(step_over_a_large_message, 2, tmp_path)

    assert [o.code for o in outcomes] == [0, 0]
    assert [o.value[1:] for o in outcomes] == [[[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]] * 2


def connect_twice():
    values = []
    for round_ in range(2):
        _, here = joined(both_ways(2))
        values.append([v.decode() for v in exchange(here, "k", f"{round_}".encode())])
        here.post(1 - here.rank, Label(0, "x"), SPEC)
        here.send(1 - here.rank, Label(0, "x"), (torch.full((2, 3), float(round_)),), SPEC)
        values.append(float(here.wait(1 - here.rank, Label(0, "x"))[0][0, 0]))
        here.close()
    dist.destroy_process_group()
    return values


def test_a_process_may_have_several_pipelines(tmp_path):
    """Each joining has edges and a board of its own."""
    outcomes = run_ranks(connect_twice, 2, tmp_path)

    assert [(o.code, o.value) for o in outcomes] == [(0, [["0", "0"], 0.0, ["1", "1"], 1.0])] * 2
