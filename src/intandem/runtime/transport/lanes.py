"""The helper threads of an edge: they wait where waiting cannot be interrupted.

A transfer of Gloo can neither be interrupted nor polled; a wait that times out closes the
connection for good. So a rank begins its transfers itself, and a thread per edge waits for them,
in order, and says when they are done.
"""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import torch.distributed as dist

    from intandem.runtime.transport.edges import Communicator
    from intandem.runtime.transport.protocol import Label


@dataclass(slots=True)
class Transfer:
    """One message on its way, for what is said about a failure.

    Attributes:
        label: of the message.
        route: ``to rank 1`` or ``from rank 0``.
        state: ``begun``, ``done`` or ``lost``.
    """

    label: Label
    route: str
    state: str = "begun"

    def __str__(self) -> str:
        return f"{self.label} {self.route}: {self.state}"


@dataclass(frozen=True, slots=True)
class _Job:
    """A transfer that has begun, and its memory, which must not go before it is done."""

    work: dist.Work
    flat: torch.Tensor
    transfer: Transfer


class _Lane:
    """A thread that waits for one edge's transfers, in the order they began."""

    def __init__(self, communicator: Communicator, name: str) -> None:
        self._communicator = communicator
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let the thread end once everything that has begun is done. Does not wait."""
        self._jobs.put(None)

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread to end, at most so long; return whether it has."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job.work.wait()
                if job.flat.is_cuda:  # NCCL's wait holds up the stream only
                    torch.cuda.current_stream(job.flat.device).synchronize()
            except RuntimeError as error:
                job.transfer.state = "lost"
                self._lost(error)
            else:
                job.transfer.state = "done"
                self._done(job.flat)
            del job  # the memory goes before the next wait, not after it

    def _done(self, flat: torch.Tensor) -> None:
        raise NotImplementedError

    def _lost(self, error: RuntimeError) -> None:
        raise NotImplementedError


class Outgoing(_Lane):
    """Sends over one edge. ``error`` is set once the connection is lost."""

    def __init__(self, communicator: Communicator, name: str) -> None:
        self.error: RuntimeError | None = None
        super().__init__(communicator, name)

    def send(self, flat: torch.Tensor, transfer: Transfer) -> None:
        """Begin to send; ``flat`` is kept until it has left."""
        try:
            work = self._communicator.send(flat)
        except RuntimeError as error:
            transfer.state = "lost"
            self._lost(error)
        else:
            self._jobs.put(_Job(work, flat, transfer))

    def _done(self, flat: torch.Tensor) -> None:
        pass

    def _lost(self, error: RuntimeError) -> None:
        self.error = self.error or error


class Incoming(_Lane):
    """Receives over one edge."""

    def __init__(self, communicator: Communicator, name: str) -> None:
        self._arrived: queue.SimpleQueue[torch.Tensor | RuntimeError] = queue.SimpleQueue()
        super().__init__(communicator, name)

    def post(self, flat: torch.Tensor, transfer: Transfer) -> None:
        """Begin to receive into ``flat``."""
        try:
            work = self._communicator.recv(flat)
        except RuntimeError as error:
            transfer.state = "lost"
            self._lost(error)
        else:
            self._jobs.put(_Job(work, flat, transfer))

    def take(self, timeout_s: float) -> torch.Tensor | RuntimeError | None:
        """The oldest memory posted, filled; why it cannot be; or None after so long."""
        try:
            return self._arrived.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def _done(self, flat: torch.Tensor) -> None:
        self._arrived.put(flat)

    def _lost(self, error: RuntimeError) -> None:
        self._arrived.put(error)
