"""Messages between processes of one machine, in memory that both have mapped.

::

    source                                          target
    packs a message into a slot
    says which slot, and how long  ── socket ──▶    copies the message out of the slot
    may use the slot again         ◀── socket ──    says so

Slots are parts of memory without a name (``memfd_create``), which goes with the last process that
has it; its descriptor travels with its first message. There are as many slots as there were
messages on their way at once, and what a pass has not needed is given back to the system. A rank
waits for the socket itself: no thread stands in between, and Python runs its signal handlers.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
import threading
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import torch

from intandem.runtime.transport.packing import Buffer, buffer_for
from intandem.runtime.transport.slots import Slots, mapped

if TYPE_CHECKING:
    from collections.abc import Callable

    from intandem.runtime.transport.lanes import Transfer
    from intandem.runtime.transport.packing import Layout

_CPU = torch.device("cpu")
_DESCRIPTOR = struct.Struct("i")
_ROOM_FOR_DESCRIPTOR = 64
_RECORD = struct.Struct("<QQQ")
"""A slot's number, how many bytes of it the message has, and how many slots begin with it in the
memory whose descriptor comes along; 0 if none does."""

_NUMBER = struct.Struct("<Q")
_MAX_NUMBERS = 512
_MAX_KEPT = 4
"""Slots that are done with before it is said so, if their messages are short."""

_LONG_BYTES = 1 << 18
_CLOSED = "connection closed by peer"
_NO_MEMORY = (
    "no memory to share: {}; more files may have to be open at once (`ulimit -n`), or messages go "
    "over Gloo (Options(shared_memory=False))"
)


class _Saying(NamedTuple):
    """A record, and the descriptor that goes with it, or none."""

    record: bytes
    descriptors: list[int]

    def close(self) -> None:
        """Let go of the descriptor."""
        for descriptor in self.descriptors:
            os.close(descriptor)


class SharedOutgoing:
    """Sends over one edge; see ``lanes.Outgoing``.

    Args:
        connection: to the target.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.error: RuntimeError | None = None
        self._connection = connection
        self._slots = Slots()
        self._lock = threading.RLock()
        self._unsaid: deque[_Saying] = deque()
        self._is_helped = False

    def send(self, layout: Layout, fill: Callable[[Buffer], None], transfer: Transfer) -> None:
        """Send a message of a layout, which ``fill`` writes where it is told to."""
        try:
            slot = self._slots.take(layout.num_bytes, self._take_back)
        except OSError as error:
            self.error = RuntimeError(_NO_MEMORY.format(error))
            transfer.state = "lost"
            return
        fill(slot.buffer)
        record = _RECORD.pack(slot.number, layout.num_bytes, slot.num_new)
        self._say(_Saying(record, slot.descriptors))
        transfer.state = "done" if self.error is None else "lost"

    def take_room(self, timeout_s: float) -> bool:
        """Return at once: there is always room."""
        del timeout_s
        return True

    def settle(self) -> None:
        """Return: what is not said yet is seen to."""

    def tidy(self) -> None:
        """Give memory back to the system that the pass did not need."""
        self._take_back()
        self._slots.trim()

    def close(self) -> None:
        """Return: what is not said yet is seen to."""

    def join(self, timeout_s: float) -> bool:
        """Wait until all has been said, at most so long; then end the connection.

        Returns:
            Whether it has.
        """
        if self._unsaid and self.error is None:
            poll = select.poll()
            poll.register(self._connection, select.POLLOUT)
            poll.poll(1000 * timeout_s)
            self._say_the_rest()
        if self._unsaid and self.error is None:
            return False
        self._connection.close()
        return True

    def _say(self, saying: _Saying) -> None:
        """Say it after all that was said before; where that cannot be now, a thread sees to it."""
        with self._lock:
            if not self._unsaid and self._said(saying):
                return
            self._unsaid.append(saying)
            if not self._is_helped:
                self._is_helped = True
                threading.Thread(target=self._help, name="send in order", daemon=True).start()

    def _help(self) -> None:
        """Say what the socket had no room for, as room comes, whatever the rank is at."""
        poll = select.poll()
        poll.register(self._connection, select.POLLOUT)
        while self._is_helped:
            poll.poll()
            self._say_the_rest()

    def _say_the_rest(self) -> None:
        with self._lock:
            while self._unsaid:
                saying = self._unsaid.popleft()  # first, lest an exception has it said twice
                if not self._said(saying):
                    self._unsaid.appendleft(saying)
                    return
            self._is_helped = False

    def _said(self, saying: _Saying) -> bool:
        """Say it, or note that nothing can be said any more; False if there is no room now."""
        try:
            if saying.descriptors:
                fds, flags = saying.descriptors, socket.MSG_NOSIGNAL
                socket.send_fds(self._connection, [saying.record], fds, flags)
            else:
                self._connection.send(saying.record, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError as error:
            self.error = RuntimeError(str(error))
        saying.close()
        return True

    def _take_back(self) -> None:
        """Take note of the slots that the target has done with.

        One that is gone is told of by the next message: it may have had all that it needs.
        """
        with suppress(OSError):  # nothing more now, or ever
            while numbers := self._connection.recv(_MAX_NUMBERS * _NUMBER.size):
                self._slots.give_back(number for (number,) in _NUMBER.iter_unpack(numbers))


class SharedIncoming:
    """Receives over one edge; see ``lanes.Incoming``.

    Args:
        connection: to the source.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._memory: list[torch.Tensor] = []
        self._addresses: dict[int, int] = {}
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
        record, ancillary, flags, _ = self._connection.recvmsg(_RECORD.size, _ROOM_FOR_DESCRIPTOR)
        if not record:
            raise RuntimeError(_CLOSED)
        number, num_bytes, num_new = _RECORD.unpack(record)
        if num_new:
            if flags & socket.MSG_CTRUNC or not ancillary:
                raise RuntimeError(_NO_MEMORY.format("its descriptor could not be received"))
            self._map(number, num_new, *_DESCRIPTOR.unpack(ancillary[0][2]))
        if num_bytes > buffer.flat.numel():  # it will be refused, by its header
            buffer = Buffer(torch.empty(num_bytes, dtype=torch.uint8))
        ctypes.memmove(buffer.address, self._addresses[number], num_bytes)
        self._done_with.append(number)
        if num_bytes > _LONG_BYTES or len(self._done_with) >= _MAX_KEPT:
            self._give_back()
        return buffer

    def _map(self, first: int, num_new: int, descriptor: int) -> None:
        """Take in memory of ``num_new`` slots, of which ``first`` is the first."""
        try:
            memory = mapped(descriptor)
        finally:
            os.close(descriptor)
        self._memory.append(memory)
        start, size = memory.data_ptr(), memory.numel() // num_new
        self._addresses |= {first + index: start + index * size for index in range(num_new)}

    def _give_back(self) -> None:
        numbers = self._done_with[:_MAX_NUMBERS]
        try:
            self._connection.send(b"".join(map(_NUMBER.pack, numbers)), socket.MSG_NOSIGNAL)
        except OSError:  # too much on its way: with the next; or a loss, which the next wait finds
            return
        del self._done_with[: len(numbers)]
