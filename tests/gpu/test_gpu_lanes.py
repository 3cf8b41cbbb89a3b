"""What the thread of an edge does while a message is on its way to a GPU."""

import pytest
import torch

from intandem.runtime.transport.lanes import Transfer, _Job
from intandem.runtime.transport.packing import Buffer
from intandem.runtime.transport.protocol import Label

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: make test-gpu"),
]


class Work:
    """A transfer that holds up the current stream alone."""

    def wait(self):
        pass


@pytest.mark.parametrize("is_followed", [True, False])
def test_a_rank_whose_gpu_waits_is_seen_to_wait(is_followed, monkeypatch):
    """Its host may be at an operation that waits for the GPU, where it cannot look for a verdict.

    A message that is not asked for yet says nothing: the rank computes, or hangs.
    """
    left, ticks = [5], []

    class Late:
        def record(self, stream):
            del stream

        def query(self):
            left[0] -= 1
            return left[0] < 0

    monkeypatch.setattr(torch.cuda, "Event", Late)
    flat = torch.arange(16, dtype=torch.uint8, device="cuda")
    job = _Job(Work(), Buffer(flat), Transfer(Label(0, "0F0>1"), "from rank 0"), 4, is_followed)
    assert job.finish(torch.cuda.Stream(), lambda: ticks.append(1)) == bytes(range(4))
    assert len(ticks) == (5 if is_followed else 0)
