"""Messages between processes of one machine, in memory that both have mapped.

::

    source                                          target
    packs a message into a slot
    says which slot, and how long  ── socket ──▶    copies the message out of the slot
    may use the slot again         ◀── socket ──    says so

A slot is memory without a name (``memfd_create``), which goes with the last process that has it;
its descriptor travels with its first message. There are as many slots as there were messages on
their way at once. A rank waits for the socket itself: no thread stands in between, Python runs its
signal handlers meanwhile, and a process that dies closes its socket.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
from collections import defaultdict, deque
from typing import TYPE_CHECKING

import torch

from intandem.runtime.transport.packing import Buffer, buffer_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from intandem.runtime.transport.lanes import Transfer
    from intandem.runtime.transport.packing import Layout

_CPU = torch.device("cpu")
_DESCRIPTOR = struct.Struct("i")
_RECORD = struct.Struct("<QQ")
"""A slot's number, and how many bytes of it the message has."""

_ROOM_FOR_DESCRIPTOR = 64
_NUMBER = struct.Struct("<Q")
_MAX_NUMBERS = 512
_MAX_KEPT = 4
"""Slots that are done with before it is said so, if their messages are short."""

_LONG_BYTES = 1 << 18
_SMALLEST_SLOT = 4096
_SOCKET_BYTES = 4 << 20
_CLOSED = "connection closed by peer"


def _mapped(descriptor: int) -> Buffer:
    """Return the memory of a descriptor, which is not needed for it from then on."""
    size = os.fstat(descriptor).st_size
    path = f"/proc/self/fd/{descriptor}"
    return Buffer(torch.from_file(path, shared=True, size=size, dtype=torch.uint8))


def _taken(descriptor: int) -> Buffer:
    try:
        return _mapped(descriptor)
    finally:
        os.close(descriptor)


class SharedOutgoing:
    """Sends over one edge; see ``lanes.Outgoing``.

    Args:
        connection: to the target.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
        self.error: RuntimeError | None = None
        self._connection = connection
        self._slots: list[Buffer] = []
        self._free: dict[int, list[int]] = defaultdict(list)
        self._unsaid: deque[tuple[bytes, list[int]]] = deque()

    def send(self, layout: Layout, fill: Callable[[Buffer], None], transfer: Transfer) -> None:
        """Send a message of a layout, which ``fill`` writes where it is told to."""
        number, descriptors = self._free_slot(layout.num_bytes)
        fill(self._slots[number])
        self._unsaid.append((_RECORD.pack(number, layout.num_bytes), descriptors))
        self.settle()
        transfer.state = "done" if self.error is None else "lost"

    def settle(self) -> None:
        """Say what was not said because too much is on its way. Does not wait."""
        try:
            while self._unsaid and self.error is None:
                record, descriptors = self._unsaid[0]
                if descriptors:
                    socket.send_fds(self._connection, [record], descriptors)
                    os.close(descriptors[0])
                else:
                    self._connection.send(record)
                self._unsaid.popleft()
        except BlockingIOError:
            pass
        except OSError as error:
            self.error = RuntimeError(str(error))

    def take_room(self, timeout_s: float) -> bool:
        """Return at once: there is always room."""
        del timeout_s
        return True

    def close(self) -> None:
        """Say what can be said at once; ``join`` closes the connection."""
        self.settle()

    def join(self, timeout_s: float) -> bool:
        """Wait until all has been said, at most so long; return whether it has."""
        if self._unsaid and self.error is None:
            select.select([], [self._connection], [], timeout_s)
            self.settle()
        if self._unsaid and self.error is None:
            return False
        # Closed with something unread, it would say that it was lost.
        self._connection.shutdown(socket.SHUT_WR)
        return True

    def _free_slot(self, num_bytes: int) -> tuple[int, list[int]]:
        """Return the number of a slot, and what its memory is called if the target has not it."""
        size = max(_SMALLEST_SLOT, 1 << (num_bytes - 1).bit_length())
        if not self._free[size]:
            self._free_again()
        if self._free[size]:
            return self._free[size].pop(), []
        descriptor = os.memfd_create("intandem")
        os.ftruncate(descriptor, size)
        self._slots.append(_mapped(descriptor))
        return len(self._slots) - 1, [descriptor]

    def _free_again(self) -> None:
        """Take note of the slots that the target has done with."""
        try:
            numbers = self._connection.recv(_MAX_NUMBERS * _NUMBER.size)
        except BlockingIOError:
            return
        except OSError as error:
            self.error = RuntimeError(str(error))
            return
        if not numbers:
            self.error = RuntimeError(_CLOSED)
        for (number,) in _NUMBER.iter_unpack(numbers):
            self._free[self._slots[number].flat.numel()].append(number)


class SharedIncoming:
    """Receives over one edge; see ``lanes.Incoming``.

    Args:
        connection: to the source.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._slots: dict[int, Buffer] = {}
        self._done_with: list[int] = []
        self._posted: deque[tuple[Layout, Transfer]] = deque()
        self._next: Buffer | None = None
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def post(self, layout: Layout, transfer: Transfer) -> None:
        """Expect a message of a layout."""
        self._posted.append((layout, transfer))

    def take(self, timeout_s: float) -> Buffer | RuntimeError | None:
        """The oldest message posted; why it cannot be; or None after so long."""
        if self._next is None:  # while the message may still be on its way
            self._next = buffer_for(self._posted[0][0], _CPU)
        if not self._poll.poll(1000 * timeout_s):
            return None
        buffer, self._next = self._next, None
        _, transfer = self._posted.popleft()
        try:
            buffer = self._read(buffer)
        except (OSError, RuntimeError) as error:
            transfer.state = "lost"
            return RuntimeError(str(error))
        transfer.state = "done"
        return buffer

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.close()

    def join(self, timeout_s: float) -> bool:
        """Return: nothing is waited for."""
        del timeout_s
        return True

    def _read(self, buffer: Buffer) -> Buffer:
        record, ancillary, _, _ = self._connection.recvmsg(_RECORD.size, _ROOM_FOR_DESCRIPTOR)
        if not record:
            raise RuntimeError(_CLOSED)
        number, num_bytes = _RECORD.unpack(record)
        for _, _, packed in ancillary:
            self._slots[number] = _taken(*_DESCRIPTOR.unpack(packed))
        slot = self._slots[number]
        if num_bytes > buffer.flat.numel():  # it will be refused, by its header
            buffer = Buffer(torch.empty(num_bytes, dtype=torch.uint8))
        ctypes.memmove(buffer.address, slot.address, num_bytes)
        self._done_with.append(number)
        if num_bytes > _LONG_BYTES or len(self._done_with) == _MAX_KEPT:
            self._give_back()
        return buffer

    def _give_back(self) -> None:
        numbers = self._done_with[:_MAX_NUMBERS]
        try:
            self._connection.send(b"".join(map(_NUMBER.pack, numbers)))
        except OSError:  # too much on its way: with the next; or a loss, which the next wait finds
            return
        del self._done_with[: len(numbers)]
