"""What ranks are given of a GPU and its time, on a torch that only says that it has one."""

import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import intandem as it
from intandem.pipeline.batches import _moved
from intandem.runtime.launcher.environment import rank_environment
from intandem.runtime.tally import LossTally
from intandem.runtime.transport import edges


@pytest.fixture
def pipe():
    batch = torch.randn(4, 3)
    with it.Pipeline(
        nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)),
        example=batch,
        loss=lambda output, batch: output.square().mean(),
        ranks=2,
        microbatches=2,
        options=it.Options(device="cpu"),
    ) as pipe:
        yield pipe


def test_ranks_compute_on_the_stream_of_the_caller(pipe, monkeypatch):
    entered = set()

    @contextmanager
    def stream(given):
        entered.add((threading.current_thread().name, given))
        yield

    def current_stream(device):
        return threading.current_thread().name, device.index

    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    pipe._assembly.ranks._device = torch.device("cuda", 1)
    pipe.step(torch.randn(4, 3))
    expected = threading.current_thread().name, 1
    assert entered == {("intandem rank 0", expected), ("intandem rank 1", expected)}


def test_losses_are_on_their_way_once_all_are_known(pipe, monkeypatch):
    """Asked one by one, each would wait for all that the GPU was given since."""
    num_known = []
    monkeypatch.setattr(LossTally, "begin_reading", lambda t: num_known.append(len(t._terms)))
    pipe.step(torch.randn(4, 3))
    assert num_known == [2]


def test_ranks_that_are_started_have_queues_for_all_streams(monkeypatch):
    """And load kernels at the start, unless the user has said otherwise."""
    names = ["CUDA_DEVICE_MAX_CONNECTIONS", "CUDA_MODULE_LOADING"]
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert [rank_environment(0, 2, 9).get(name) for name in names] == ["32", "EAGER"]
    monkeypatch.setenv(names[0], "1")
    assert rank_environment(0, 2, 9)[names[0]] == "1"


def test_nccl_never_gives_up_by_itself(monkeypatch):
    """A wait of ten minutes is for the watch to judge."""
    given = []

    class Nccl:
        Options = SimpleNamespace

        def __init__(self, store, index, size, options):
            given.append(options._timeout)

    monkeypatch.setattr(edges.dist, "PrefixStore", lambda prefix, store: store)
    monkeypatch.setattr(edges.dist, "ProcessGroupNCCL", Nccl, raising=False)
    monkeypatch.setattr(edges, "_use_once", lambda *_, **__: None)
    membership = SimpleNamespace(rank=0, store=None, backend="nccl")
    edges._open(membership, edges.Edge(0, 1), torch.device("cuda"), shared_memory=True)
    assert [timeout.days for timeout in given] == [365]


@pytest.mark.parametrize(
    ("make", "device", "is_pinned", "waits"),
    [
        (lambda: torch.ones(4, 3), "cuda", False, False),
        (
            lambda: torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last),
            "cuda",
            False,
            False,
        ),
        (lambda: torch.ones(4, 3), "cuda", True, True),
        (lambda: torch.ones(4).expand(3, 4), "cuda", False, True),
        (lambda: torch.ones(4, 3), "cpu", False, True),
    ],
    ids=["plain", "channels last", "pinned by the caller", "expanded", "to a CPU"],
)
def test_a_batch_is_copied_without_waiting_where_it_can_be(
    make, device, is_pinned, waits, monkeypatch
):
    """What the caller has pinned may be filled anew; what repeats elements cannot be pinned."""
    tensor, copies = make(), []
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda _: is_pinned)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: t)
    monkeypatch.setattr(torch.Tensor, "to", lambda _, *to, **how: copies.append((to, how)))
    _moved(tensor, torch.device(device))
    assert copies == [((torch.device(device),), {} if waits else {"non_blocking": True})]
