"""Ranks as processes with a GPU each, over NCCL.

On a machine without two GPUs these run on pretend ones: ``make test-gpu``.
"""

import copy
import math
import os

import pytest
import torch
from processes import run_ranks
from test_distributed_transport import MIXED, Calm
from test_equality_processes import check_all, train
from test_ragged_replicas import losses
from torch import nn
from torch.utils._pytree import tree_map

import intandem as it
from harness import pipeline, relative_error
from intandem.errors import ActionError, ContractError, PeerFailureError
from intandem.runtime.transport.distributed import connect
from intandem.runtime.transport.edges import Edge
from intandem.runtime.transport.lanes import MAX_AHEAD
from intandem.runtime.transport.process_group import join_process_group
from intandem.runtime.transport.protocol import Label
from models import SAMPLES, Sample

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs: make test-gpu"),
]

CASES = [
    ("gpt_tied", "none", 4),
    ("batch_norm", "all", 3),
    ("unet", "none", 5),
    ("two_towers", "none", 3),
    ("dropout_in_glue", "none", 3),
    ("shared_block", "all", 3),
    ("frozen_first", "none", 3),
    ("loss_in_output", "none", 3),
    ("loss_sum_padded", "none", 4),
    ("llama_tied", "none", 3),
]


def train_all(schedule):
    """Errors of every case, by name."""
    return {name: train(name, schedule, *rest) for name, *rest in CASES}


@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1"])
def test_one_process_s_numbers(schedule, tmp_path):
    """Loss, gradients, norm, evaluation and state of three AdamW steps."""
    check_all(run_ranks(train_all, 2, tmp_path, schedule, timeout_s=110))


def trained_from_the_host(names):
    """What is recorded in the first step of models that are the host's, with batches there."""
    found = {}
    for name in names:
        model, batch, loss = SAMPLES[name]()
        sample = Sample(model.cpu(), tree_map(lambda leaf: leaf.cpu(), batch), loss)
        with pipeline(sample, schedule="1f1b", microbatches=2) as pipe:
            recordings, recorded = pipe._assembly.recordings, []
            plain = recordings.add
            recordings.add = lambda graph, plain=plain, to=recorded: (
                to.append(graph) or plain(graph)
            )
            assert math.isfinite(float(pipe.step(sample.batch)))
            found[name] = len(recorded)
            assert torch.cuda.current_device() == int(os.environ["RANK"])
            assert all(parameter.is_cuda for parameter in pipe.parameters())
    return found


def test_models_of_the_host_are_recorded_where_they_run(tmp_path):
    """So the first step records nothing anew, which some models could not be."""
    names = ["gpt_tied", "in_place_glue", "buffers_in_glue"]
    for outcome in run_ranks(trained_from_the_host, 2, tmp_path, names, timeout_s=60):
        assert outcome.code == 0, outcome.output
        assert outcome.value == dict.fromkeys(names, 0)


def test_models_without_room_are_recorded_in_the_hosts_memory(tmp_path):
    """And anew in the first step, from the shapes of what is not here."""
    for outcome in run_ranks(trained_without_room, 2, tmp_path, timeout_s=60):
        assert outcome.code == 0, outcome.output
        assert outcome.value == {"gpt_tied": 2}  # four rows, and three


def trained_without_room():
    """The same on GPUs with little memory left."""
    torch.cuda.mem_get_info = lambda device=None: (1000, 1000)
    return trained_from_the_host(["gpt_tied"])


@pytest.mark.parametrize(("schedule", "replicas"), [("chimera", 1), ("1f1b", 2)])
def test_micro_batches_come_and_go(schedule, replicas, tmp_path):
    """A rank without any has no gradients to send, in some steps and not in others."""
    for outcome in run_ranks(losses, 2, tmp_path, schedule, replicas, timeout_s=60):
        assert outcome.code == 0, outcome.output
        assert max(outcome.value) < 1e-6


def rows_first(replicas):
    """Errors of a step of one row, and then of one with rows for every replica."""
    torch.manual_seed(0)
    batch = torch.randn(4, 4, dtype=torch.float64)
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))).double()
    plain = [first_row(model(x), x).item() for x in (batch[:1], batch)]
    with it.Pipeline(
        model, example=batch, loss=first_row, microbatches=4, replicas=replicas
    ) as pipe:
        found = [float(pipe.step(batch[:1])), float(pipe.step(batch))]
    return [abs(ours - theirs) for ours, theirs in zip(found, plain, strict=True)]


def test_a_replica_may_come_later(tmp_path):
    """Its gradients are looked at in every step: there are none of them in the first."""
    for outcome in run_ranks(rows_first, 2, tmp_path, 2, timeout_s=60):
        assert outcome.code == 0, outcome.output
        assert max(outcome.value) <= 1e-12


def weighed_by_count():
    """Errors of steps in which a micro-batch counts for nothing, and then for something."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    twin, found = copy.deepcopy(model).double(), []
    model.double()
    batches = [torch.ones(4, 4, dtype=torch.float64) * factor for factor in (1.0, 0.5, 1.0, 2.0)]
    for number, index in enumerate((0, 1, 0)):
        batches[number][index] = 0.0
    with it.Pipeline(
        model, example=batches[0], loss=first_row, microbatches=4, count=num_set, schedule="zb-h1"
    ) as pipe:
        twin.to(next(iter(pipe.parameters())).device)
        for batch in batches:
            pipe.step(batch)
            whole = batch.to(next(twin.parameters()).device)
            is_set = whole.abs().sum(1) > 0
            twin(whole)[is_set].square().mean().backward()
            held = dict(pipe.named_parameters())
            theirs = {n: p.grad for n, p in twin.named_parameters() if n in held}
            found.append(relative_error({n: p.grad for n, p in held.items()}, theirs))
    return found


def first_row(output, batch):
    """The mean over a micro-batch."""
    del batch
    return output.square().mean()


def num_set(batch):
    """How many rows are not zero."""
    return float((batch.abs().sum(1) > 0).sum())


def test_a_micro_batch_may_count_for_nothing(tmp_path):
    """It has no gradients in such a step, and has them in the next."""
    for outcome in run_ranks(weighed_by_count, 2, tmp_path, timeout_s=60):
        assert outcome.code == 0, outcome.output
        assert max(outcome.value) <= 1e-12


def waits_of_steps(schedule):
    """What this rank's thread waits for in each of four steps."""
    import pretend_gpu

    sample = SAMPLES["gpt_untied"]()
    batch = tuple(leaf.cpu() for leaf in sample.batch)
    found = []
    with pipeline(sample, schedule=schedule, microbatches=4) as pipe:
        optimizer = torch.optim.SGD(pipe.parameters(), lr=0.1)
        looked_at = looks_before_the_end(pipe._assembly.ranks.transport)
        for _ in range(4):
            pretend_gpu.host_waits()
            looked_at.clear()
            loss = pipe.step(batch)
            optimizer.step()
            optimizer.zero_grad()
            float(loss)
            found.append(pretend_gpu.host_waits(here=True) + looked_at)
    return found


def looks_before_the_end(transport):
    """Return a list that will hold the messages whose labels are read before ``verify``."""
    looked_at, plain_take, plain_verify = [], transport._take, transport.verify

    def take(peer, label):
        looked_at.append(label.tag)
        return plain_take(peer, label)

    def verify():
        transport._take = plain_take
        plain_verify()
        transport._take = take

    transport._take, transport.verify = take, verify
    return looked_at


@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1"])
def test_the_host_waits_for_no_message(schedule, tmp_path):
    """Once it has seen the messages of a step, it waits for the loss alone, where that is."""
    pytest.importorskip("pretend_gpu")
    first, last = run_ranks(waits_of_steps, 2, tmp_path, schedule, timeout_s=60)
    assert first.code == last.code == 0, first.output + last.output
    assert any(">" in what for what in first.value[0])  # it has looked at those of the first
    assert first.value[1:] == [[]] * 3
    assert last.value[1:] == [["event"]] * 3


def bytes_of_a_step(microbatches):
    """The most that the last of three steps holds, above what was there before it."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))
    device = int(os.environ["RANK"])
    batch = torch.randn(256 * microbatches, 64).to(f"cuda:{device}")
    with it.Pipeline(
        model, example=batch, loss=first_row, microbatches=microbatches, schedule="1f1b"
    ) as pipe:
        for _ in range(3):
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            float(pipe.step(batch))
        return torch.cuda.max_memory_allocated(device) - before


def test_messages_are_let_go(tmp_path):
    """What a step of 1F1B holds does not grow with M: a message goes when it has been used."""
    found = []
    for microbatches in (8, 32):
        folder = tmp_path / str(microbatches)
        folder.mkdir()
        outcomes = run_ranks(bytes_of_a_step, 2, folder, microbatches, timeout_s=60)
        assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
        found.append([outcome.value for outcome in outcomes])
    few, many = found
    message_bytes = 256 * 64 * 4
    under_way = (MAX_AHEAD + 1) * message_bytes  # sent, and not known to have left; 24 more are not
    assert all(m <= f + under_way for f, m in zip(few, many, strict=True)), found


def far_ahead():
    """How many of 20 messages, each like one before, are under way before the host waits."""
    rank = int(os.environ["RANK"])
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    membership = join_process_group(device)
    transport = connect(membership, [Edge(0, 1)], Calm(), device=device, timeout_s=30)
    label = Label(0, "0F0>1")
    payload = tuple(torch.ones(spec.shape, device=device).to(spec.dtype) for spec in MIXED)
    most, like = 0, {}
    for _ in range(20):
        if rank == 0:
            transport.send(1, label, payload, MIXED)
            most = max(most, MAX_AHEAD - transport._outgoing[1]._room._value)
        else:
            transport.post(0, label, MIXED)
            transport.wait(0, label, like=like)
            most = max(most, len(transport._unread[0]))
    transport.verify()
    transport.close()
    return most


def test_the_host_is_not_far_ahead(tmp_path):
    """So the memory of messages under way is bounded, however far a GPU is behind."""
    first, last = run_ranks(far_ahead, 2, tmp_path, timeout_s=60)
    assert first.code == last.code == 0, first.output + last.output
    assert 1 <= first.value <= MAX_AHEAD
    assert last.value == MAX_AHEAD


def transported(messages):
    """Rank 0 sends; rank 1 waits for three steps of what it expects, and verifies each.

    Args:
        messages: tags and which tensors are there, for each step.
    """
    rank = int(os.environ["RANK"])
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    membership = join_process_group(device)
    transport = connect(membership, [Edge(0, 1)], Calm(), device=device, timeout_s=30)
    outcome, like = [], {}
    for step, (tag, present) in enumerate(messages):
        if rank == 0:
            tensors = (
                torch.full((2, 3), float(step), device=device),
                torch.arange(4, device=device),
                torch.empty(0, 2, dtype=torch.bfloat16, device=device),
            )
            pairs = zip(tensors, present, strict=True)
            payload = tuple(t if is_there else None for t, is_there in pairs)
            transport.send(1, Label(step, tag), payload, MIXED)
            continue
        try:
            transport.post(0, Label(step, "0F0>1"), MIXED)
            got = transport.wait(0, Label(step, "0F0>1"), like=like)
            outcome.append([None if t is None else t.tolist() for t in got])
            transport.verify()
        except ContractError as error:
            outcome.append(str(error))
            break
    transport.close()
    return outcome


ALL = [True, True, True]
SENT = [[[0.0] * 3] * 2, [0, 1, 2, 3], []]


@pytest.mark.parametrize(
    ("second", "says"),
    [
        (("0F0>1", ALL), [[[1.0] * 3] * 2, SENT[1], SENT[2]]),
        (("0F0>1", [False, True, True]), [[[0.0] * 3] * 2, SENT[1], SENT[2]]),
        (("0F7>1", ALL), "expected 0F0>1 of step 1 with"),
    ],
    ids=["right", "a gradient is missing", "another label"],
)
def test_labels_are_read_when_the_step_is_over(second, says, tmp_path):
    """What arrives is used at once; that it was the wrong message is known before it counts."""
    messages = [("0F0>1", ALL), second]
    _, outcome = run_ranks(transported, 2, tmp_path, messages, timeout_s=60)
    assert outcome.code == 0, outcome.output
    assert outcome.value[0] == SENT
    if not isinstance(says, str):
        assert outcome.value[1:] == [says]
    else:
        assert len(outcome.value) == 3  # taken, and then refused
        assert says in outcome.value[2]
        assert outcome.value[2].startswith("rank 1 receiving from rank 0: ")


def test_a_gradient_that_was_undefined_is_not_lost(tmp_path):
    """It has not been used: that is an error, before an optimizer steps."""
    messages = [("0F0>1", [True, False, True]), ("0F0>1", ALL)]
    _, outcome = run_ranks(transported, 2, tmp_path, messages, timeout_s=60)
    assert outcome.code == 0, outcome.output
    assert outcome.value[0] == [SENT[0], None, SENT[2]]
    assert len(outcome.value) == 3
    assert "gradients are there (111, the first tensor first) that were" in outcome.value[2]
    assert "undefined before (101)" in outcome.value[2]


def test_a_first_message_is_looked_at_before_it_is_used(tmp_path):
    """The host waits for it: which of its gradients are undefined is not known yet."""
    _, outcome = run_ranks(transported, 2, tmp_path, [("0F7>1", ALL)], timeout_s=60)
    assert outcome.code == 0, outcome.output
    assert len(outcome.value) == 1  # refused before it was taken
    assert "got 0F7>1 of step 0" in outcome.value[0]


def mislabelled():
    """What comes of three steps whose last has a message of rank 0's that says it is another."""
    sample = SAMPLES["gpt_untied"]()
    with pipeline(sample, schedule="1f1b", microbatches=4) as pipe:
        for _ in range(2):
            float(pipe.step(sample.batch))
        transport = pipe._assembly.ranks.transport
        plain = transport.send

        def send(peer, label, payload, contract):
            wrong = label._replace(tag="0F9>1") if label.tag == "0F1>1" else label
            plain(peer, wrong, payload, contract)

        transport.send = send
        try:
            pipe.step(sample.batch)
        except (ActionError, PeerFailureError) as error:
            return str(error)
    return None


def test_a_step_with_a_wrong_message_fails(tmp_path):
    """Where it was received, before an optimizer can use its gradients; and then everywhere."""
    sender, receiver = run_ranks(mislabelled, 2, tmp_path, timeout_s=60)
    assert receiver.value is not None, receiver.output
    assert "expected 0F1>1 of step" in receiver.value
    assert "got 0F9>1 of step" in receiver.value
    assert [sender.code, receiver.code] == [1, 1]
