"""NCCL made of Gloo, which may read and write pretend devices' memory: it is the host's.

Its ``wait`` waits for the transfer, where NCCL's has the current stream do so.
"""

import threading

import torch
import torch.distributed as dist

_BACKEND = "pretend_nccl"


def patch():
    """Have ``torch.distributed`` take this for NCCL."""
    plain = dist.init_process_group

    def init_process_group(backend=None, **known):
        plain(f"cpu:gloo,cuda:{_BACKEND}" if backend == "nccl" else backend, **known)

    def make(store, rank, size, timeout):
        del timeout
        return ProcessGroupNCCL(store, rank, size)

    dist.init_process_group = init_process_group
    dist.ProcessGroupNCCL = ProcessGroupNCCL
    dist.Backend.register_backend(_BACKEND, make, devices=["cuda"])


class Transfer:
    """May be waited for by several threads, which a transfer of Gloo may not."""

    def __init__(self, work):
        """Wrap one of Gloo's."""
        self._work = work
        self._lock = threading.Lock()

    def wait(self):
        """Wait."""
        with self._lock:
            if self._work is not None:
                self._work.wait()
            self._work = None


class ProcessGroupNCCL(dist.ProcessGroup):
    """What of it is used."""

    class Options:
        """How long to wait."""

        _timeout = dist.default_pg_timeout

    def __init__(self, store, rank, size, options=None):
        """Connect the members."""
        super().__init__(rank, size)
        timeout = (options or self.Options)._timeout
        self._store = store
        self._gloo = dist.ProcessGroupGloo(store, rank, size, timeout)

    def getBackendName(self):  # noqa: N802  # torch's name
        """As NCCL."""
        return "nccl"

    def get_group_store(self):
        """Return where members find each other."""
        return self._store

    def send(self, tensors, target, tag):
        """Begin to send."""
        return Transfer(self._gloo.send(_on_host(tensors), target, tag))

    def recv(self, tensors, source, tag):
        """Begin to receive."""
        return Transfer(self._gloo.recv(_on_host(tensors), source, tag))

    def broadcast(self, tensors, options):
        """Begin to send to all."""
        return self._gloo.broadcast(_on_host(tensors), options)


def _on_host(tensors):
    if elsewhere := [one.device for one in tensors if not one.is_cuda]:
        msg = f"NCCL moves tensors of a GPU, not of {elsewhere[0]}"
        raise RuntimeError(msg)
    return [torch.ops.pretend_gpu.on_host(one) for one in tensors]
