"""The transport between threads takes tensors to the device of whoever receives them."""

import pytest
import torch
from torch import float32

from intandem.runtime.local_watch import local_watches
from intandem.runtime.transport.local import local_transports
from intandem.runtime.transport.protocol import Label, TensorSpec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs: make test-gpu"),
]


def test_a_message_is_copied_from_device_to_device():
    """Not by way of the host, who waits for nothing; what is there already is not copied."""
    pretend_gpu = pytest.importorskip("pretend_gpu")
    devices = [torch.device("cuda", index) for index in range(2)]
    sender, receiver = local_transports(local_watches(2), devices)
    label, contract = Label(0, "0F0>1"), (TensorSpec((2, 3), float32),)
    for device in devices:
        tensor = torch.arange(6, dtype=float32, device=device).reshape(2, 3)
        receiver.post(0, label, contract)
        pretend_gpu.host_waits()
        sender.send(1, label, (tensor,), contract)
        (found,) = receiver.wait(0, label)
        assert pretend_gpu.host_waits() == []
        assert found.device == devices[1]
        assert (found is tensor) == (device == devices[1])
        assert found.tolist() == [[0, 1, 2], [3, 4, 5]]
