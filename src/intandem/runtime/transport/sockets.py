"""Lanes over plain TCP sockets: between processes on CPUs, several times cheaper than Gloo.

A send leaves on the rank's own thread as far as the kernel takes it, and a receive is read on
the rank's own thread while it waits, so that a message usually costs two system calls and wakes
one thread. What the kernel does not take at once is sent by a helper thread, which begins with
the first such message. The receiver takes what was sent while it computed from the kernel's
buffer, a few megabytes; beyond that a message moves only while the receiver waits for it.
"""

from __future__ import annotations

import ctypes
import queue
import socket
import threading
from collections import deque
from typing import TYPE_CHECKING

from intandem.runtime.transport.protocol import POLL_S

if TYPE_CHECKING:
    import torch

    from intandem.runtime.transport.lanes import Transfer

_Rest = tuple[memoryview, "torch.Tensor", "Transfer"]


class SocketOutgoing:
    """Sends over one connection, in order."""

    def __init__(self, connection: socket.socket, name: str) -> None:
        connection.setblocking(True)
        self.error: OSError | None = None
        self._connection = connection
        self._rests: queue.SimpleQueue[_Rest | None] = queue.SimpleQueue()
        self._num_begun, self._num_done = 0, 0
        self._helper = threading.Thread(target=self._work, name=name, daemon=True)

    def send(self, flat: torch.Tensor, transfer: Transfer) -> None:
        """Send as much as can be without waiting, and leave the rest to the helper."""
        rest = _bytes_of(flat)
        if self._num_begun == self._num_done:
            rest = self._send_now(rest)
        if self.error is not None:
            transfer.state = "lost"
        elif rest:
            if not self._num_begun:
                self._helper.start()
            self._num_begun += 1
            self._rests.put((rest, flat, transfer))
        else:
            transfer.state = "done"

    def close(self) -> None:
        """Nothing more will be sent."""
        self._rests.put(None)

    def join(self, timeout_s: float) -> bool:
        """Wait until everything has been handed to the kernel, and close if so."""
        if self._num_begun:
            self._helper.join(timeout_s)
            if self._helper.is_alive():
                return False
        self._connection.close()
        return True

    def _send_now(self, data: memoryview) -> memoryview:
        try:
            return data[self._connection.send(data, socket.MSG_DONTWAIT) :]
        except BlockingIOError:
            return data
        except OSError as error:
            self.error = error
            return data

    def _work(self) -> None:
        while (job := self._rests.get()) is not None:
            rest, _, transfer = job
            try:
                self._connection.sendall(rest)
                transfer.state = "done"
            except OSError as error:
                self.error = error
                transfer.state = "lost"
            self._num_done += 1
            del job, rest, transfer, _


class SocketIncoming:
    """Receives over one connection, in order, while someone waits."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(POLL_S)
        self._connection = connection
        self._posted: deque[tuple[torch.Tensor, Transfer]] = deque()
        self._num_read = 0

    def post(self, flat: torch.Tensor, transfer: Transfer) -> None:
        """Make ready to receive into ``flat``."""
        self._posted.append((flat, transfer))

    def take(self, timeout_s: float) -> torch.Tensor | OSError | None:
        """Read into the oldest memory posted; see ``IncomingLane.take``."""
        flat, transfer = self._posted[0]
        missing = _bytes_of(flat)[self._num_read :]
        try:
            while missing:
                num_read = self._connection.recv_into(missing)
                if num_read == 0:
                    transfer.state = "lost"
                    return ConnectionResetError("connection closed by peer")
                self._num_read += num_read
                missing = missing[num_read:]
        except TimeoutError:
            return None
        except OSError as error:
            transfer.state = "lost"
            return error
        self._posted.popleft()
        self._num_read = 0
        transfer.state = "done"
        return flat

    def close(self) -> None:
        """Nothing more will be received."""
        self._connection.close()

    def join(self, timeout_s: float) -> bool:
        """Nothing is left to wait for."""
        return True


def _bytes_of(flat: torch.Tensor) -> memoryview:
    """The memory of a uint8 tensor on the CPU, which must outlive what is returned."""
    memory = (ctypes.c_char * flat.numel()).from_address(flat.data_ptr())
    return memoryview(memory).cast("B")
