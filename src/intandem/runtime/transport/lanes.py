"""The helper threads of an edge of Gloo or NCCL: they wait where waiting cannot be interrupted.

A transfer of Gloo can neither be interrupted nor polled; a wait that times out closes the
connection for good; nor does Python run a signal handler meanwhile. So a rank begins its transfers
itself, and a thread per edge waits for them, in order, and says when they are done.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from intandem.runtime.transport.packing import Buffer, buffer_for

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch.distributed as dist

    from intandem.runtime.transport.edges import Communicator
    from intandem.runtime.transport.packing import Layout
    from intandem.runtime.transport.protocol import Label


_LOOK_S = 0.0005
"""How often a thread looks whether a message is in a GPU's memory."""

_MAX_BEGUN = 8
"""Sends that are waited for at a time, if they are short."""

MAX_AHEAD = 4
"""Messages of one edge that a GPU is given to send, or to wait for, before the host waits for the
first of them: so many stay in memory at most, however far the GPU is behind."""

_MAX_BEGUN_BYTES = 1 << 20
"""Memory of sends that nobody waits for yet."""


def _nothing() -> None:
    pass


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


Arrived = Buffer | bytes
"""A message in the host's memory; of one in a GPU's, the bytes it begins with, and no more: its
memory is let go by whoever used it, however late its label is read."""


@dataclass(slots=True)
class _Job:
    """A transfer that has begun, and its memory, which must not go before it is done.

    Attributes:
        work: of the transfer.
        buffer: the message.
        transfer: what is said of it.
        prefix_bytes: how much of it to read.
        is_followed: whether its GPU has been told to wait for it.
    """

    work: dist.Work
    buffer: Buffer
    transfer: Transfer
    prefix_bytes: int = 0
    is_followed: bool = False

    def finish(self, beside: torch.cuda.Stream | None, tick: Callable[[], None]) -> Arrived:
        """Wait until the message has left, or is there.

        NCCL's own wait holds up the current stream only, which must not be the one that
        computes: this thread waits for ``beside``, and nothing else does. It calls ``tick`` now
        and then while whatever its GPU was given waits for the message as well.
        """
        if beside is None:
            self.work.wait()
            return self.buffer
        with torch.cuda.stream(beside):
            self.work.wait()
            prefix = torch.empty(self.prefix_bytes, dtype=torch.uint8, pin_memory=True)
            prefix.copy_(self.buffer.flat[: self.prefix_bytes], non_blocking=True)
            is_there = torch.cuda.Event()  # type: ignore[no-untyped-call]
            is_there.record(beside)
        while not is_there.query():  # type: ignore[no-untyped-call]
            time.sleep(_LOOK_S)
            if self.is_followed:
                tick()
        return bytes(prefix.tolist())


class _Lane:
    """A thread that waits for one edge's transfers, in the order they began.

    Args:
        communicator: the edge's.
        name: of the thread.
        device: in whose memory messages are.
        tick: says that the rank waits for another; called by the thread.
    """

    def __init__(
        self,
        communicator: Communicator,
        name: str,
        device: torch.device,
        tick: Callable[[], None] = _nothing,
    ) -> None:
        self._communicator = communicator
        self._device = device
        self._tick = tick
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
        beside: torch.cuda.Stream | None = None
        while (job := self._jobs.get()) is not None:
            try:
                if beside is None and self._device.type == "cuda":
                    beside = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
                arrived = job.finish(beside, self._tick)
            except RuntimeError as error:
                job.transfer.state = "lost"
                self._lost(error)
            else:
                job.transfer.state = "done"
                self._done(arrived)
                del arrived
            del job  # the memory goes before the next wait, not after it

    def _done(self, arrived: Arrived) -> None:
        raise NotImplementedError

    def _lost(self, error: RuntimeError) -> None:
        raise NotImplementedError


class Outgoing(_Lane):
    """Sends over one edge. ``error`` is set once the connection is lost.

    Short sends are waited for several at a time: to wake the thread takes longer than they do.
    """

    def __init__(self, communicator: Communicator, name: str, device: torch.device) -> None:
        self.error: RuntimeError | None = None
        self._begun: list[_Job] = []
        self._begun_bytes = 0
        self._room = threading.Semaphore(MAX_AHEAD)
        super().__init__(communicator, name, device)

    def take_room(self, timeout_s: float) -> bool:
        """Take one of the ``MAX_AHEAD`` places for a GPU's messages; return whether one was free.

        Waits at most so many seconds. ``send`` gives it back once the message has left. In the
        host's memory there is always room.
        """
        return self._device.type == "cpu" or self._room.acquire(timeout=timeout_s)

    def send(self, layout: Layout, fill: Callable[[Buffer], None], transfer: Transfer) -> None:
        """Begin to send a message of a layout, which ``fill`` writes where it is told to."""
        buffer = buffer_for(layout, self._device)
        fill(buffer)
        try:
            work = self._communicator.send(buffer.flat)
        except RuntimeError as error:
            transfer.state = "lost"
            self._lost(error)
            return
        self._begun.append(_Job(work, buffer, transfer))
        self._begun_bytes += layout.num_bytes
        is_long = self._begun_bytes > _MAX_BEGUN_BYTES
        if is_long or self._device.type == "cuda" or len(self._begun) == _MAX_BEGUN:
            self.settle()

    def settle(self) -> None:
        """Have what has begun waited for, so that it is known to be done. Does not wait itself."""
        begun, self._begun, self._begun_bytes = self._begun, [], 0
        for job in begun:
            self._jobs.put(job)

    def tidy(self) -> None:
        """Return: a message's memory goes with the message."""

    def close(self) -> None:
        """Let the thread end once everything that has begun is done. Does not wait."""
        self.settle()
        super().close()

    def _done(self, arrived: Arrived) -> None:
        if isinstance(arrived, bytes):
            self._room.release()

    def _lost(self, error: RuntimeError) -> None:
        self.error = self.error or error


class Incoming(_Lane):
    """Receives over one edge."""

    def __init__(
        self,
        communicator: Communicator,
        name: str,
        device: torch.device,
        tick: Callable[[], None] = _nothing,
    ) -> None:
        self._arrived: queue.SimpleQueue[Arrived | RuntimeError] = queue.SimpleQueue()
        self._unfollowed: deque[_Job | RuntimeError] = deque()
        super().__init__(communicator, name, device, tick)

    def post(self, layout: Layout, transfer: Transfer) -> None:
        """Begin to receive a message of a layout."""
        buffer = buffer_for(layout, self._device)
        try:
            work = self._communicator.recv(buffer.flat)
        except RuntimeError as error:
            transfer.state = "lost"
            self._lost(error)
            begun: _Job | RuntimeError = error
        else:
            begun = _Job(work, buffer, transfer, layout.prefix_bytes)
            self._jobs.put(begun)
        if self._device.type == "cuda":
            self._unfollowed.append(begun)

    def follow(self) -> Buffer:
        """Let a GPU, not the host, wait for the oldest message posted that was not followed yet.

        Returns:
            Its memory, for what the current stream is given from now on.

        Raises:
            RuntimeError: if the connection is lost, as far as that is known.
        """
        begun = self._unfollowed.popleft()
        if isinstance(begun, RuntimeError):
            raise begun
        begun.work.wait()
        begun.is_followed = True
        return begun.buffer

    def take(self, timeout_s: float) -> Arrived | RuntimeError | None:
        """The oldest message posted; why it cannot be; or None after so long."""
        try:
            return self._arrived.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def _done(self, arrived: Arrived) -> None:
        self._arrived.put(arrived)

    def _lost(self, error: RuntimeError) -> None:
        self._arrived.put(error)
