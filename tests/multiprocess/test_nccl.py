"""Ranks as processes with a GPU each, over NCCL.

On a machine without two GPUs these run on pretend ones: ``make test-gpu``.
"""

import copy
import os

import pytest
import torch
from processes import run_ranks
from test_distributed_transport import MIXED, Calm
from test_equality_processes import check_all, train
from test_ragged_replicas import losses
from torch import nn

import intandem as it
from harness import pipeline, relative_error
from intandem.errors import ActionError, ContractError, PeerFailureError
from intandem.runtime.transport.distributed import connect
from intandem.runtime.transport.edges import Edge
from intandem.runtime.transport.process_group import join_process_group
from intandem.runtime.transport.protocol import Label
from models import SAMPLES

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


@pytest.mark.parametrize(("schedule", "replicas"), [("chimera", 1), ("1f1b", 2)])
def test_micro_batches_come_and_go(schedule, replicas, tmp_path):
    """A rank without any has no gradients to send, in some steps and not in others."""
    for outcome in run_ranks(losses, 2, tmp_path, schedule, replicas, timeout_s=60):
        assert outcome.code == 0, outcome.output
        assert max(outcome.value) < 1e-6


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

    sample = SAMPLES["gpt_tied"]()
    batch = tuple(leaf.cpu() for leaf in sample.batch)
    found = []
    with pipeline(sample, schedule=schedule, microbatches=4) as pipe:
        optimizer = torch.optim.SGD(pipe.parameters(), lr=0.1)
        for _ in range(4):
            pretend_gpu.host_waits()
            loss = pipe.step(batch)
            optimizer.step()
            optimizer.zero_grad()
            float(loss)
            found.append(pretend_gpu.host_waits(here=True))
    return found


@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1"])
def test_the_host_waits_for_no_message(schedule, tmp_path):
    """Once it has seen the messages of a step, it waits for the loss alone, where that is."""
    pytest.importorskip("pretend_gpu")
    first, last = run_ranks(waits_of_steps, 2, tmp_path, schedule, timeout_s=60)
    assert first.code == last.code == 0, first.output + last.output
    assert first.value[1:] == [[]] * 3
    assert last.value[1:] == [["event"]] * 3


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
    outcome = []
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
            got = transport.wait(0, Label(step, "0F0>1"), like="a kind")
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
        (("0F0>1", ALL), None),
        (("0F7>1", ALL), "expected 0F0>1 of step 1 with"),
        (
            ("0F0>1", [True, False, True]),
            "other gradients are undefined (101) than in steps before (111)",
        ),
    ],
    ids=["right", "another label", "other gradients"],
)
def test_labels_are_read_when_the_step_is_over(second, says, tmp_path):
    """What arrives is used at once; that it was the wrong message is known before it counts."""
    messages = [("0F0>1", ALL), second]
    _, outcome = run_ranks(transported, 2, tmp_path, messages, timeout_s=60)
    assert outcome.code == 0, outcome.output
    assert outcome.value[0] == SENT
    if says is None:
        assert outcome.value[1:] == [[[[1.0] * 3] * 2, SENT[1], SENT[2]]]
    else:
        assert len(outcome.value) == 3  # taken, and then refused
        assert says in outcome.value[2]
        assert outcome.value[2].startswith("rank 1 receiving from rank 0: ")


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
