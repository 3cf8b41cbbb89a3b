"""Memory that a process shares with another, in slots, each for a message at a time."""

from __future__ import annotations

import ctypes
import os
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch

from intandem.runtime.transport.packing import Buffer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_SMALLEST = 4096
_MAX_NEW = 256
"""Slots that are made at a time, at most: as many as there are, so that few descriptors do."""

_MADV_REMOVE = 9


class Taken(NamedTuple):
    """A slot for a message.

    Attributes:
        number: of the slot.
        buffer: its memory.
        num_new: how many slots were made for it, of which it is the first; 0 if it was there.
        descriptors: of the memory of those, to be closed; none if it was there.
    """

    number: int
    buffer: Buffer
    num_new: int
    descriptors: list[int]


@dataclass(slots=True)
class _Pool:
    """Slots of one size.

    Attributes:
        free: numbers of those that may be used, the one used last at the end.
        num_slots: how many there are.
        most_used: how many were in use at once since ``trim``.
        emptied: numbers of free ones whose memory the system has back.
    """

    free: list[int] = field(default_factory=list)
    num_slots: int = 0
    most_used: int = 0
    emptied: set[int] = field(default_factory=set)


class Slots:
    """All slots of one edge, at the end that fills them."""

    def __init__(self) -> None:
        self._buffers: list[Buffer] = []
        self._sizes: list[int] = []
        self._pools: dict[int, _Pool] = defaultdict(_Pool)

    def take(self, num_bytes: int, look: Callable[[], None]) -> Taken:
        """Return a slot that nobody uses; new ones are made if there is none.

        Args:
            num_bytes: of the message.
            look: called if none is known to be free; may give some back.

        Raises:
            OSError: if none can be made.
        """
        pool, num_new, descriptors = self._pools[size := _size_for(num_bytes)], 0, []
        if not pool.free:
            look()
        if not pool.free:
            num_new = min(max(pool.num_slots, 1), _MAX_NEW)
            descriptors = [self._make(size, num_new)]
        number = pool.free.pop()
        pool.emptied.discard(number)
        pool.most_used = max(pool.most_used, pool.num_slots - len(pool.free))
        return Taken(number, self._buffers[number], num_new, descriptors)

    def give_back(self, numbers: Iterable[int]) -> None:
        """Take note that slots are free."""
        for number in numbers:
            self._pools[self._sizes[number]].free.append(number)

    def trim(self) -> None:
        """Give back to the system the memory of free slots that were not needed since the last."""
        for size, pool in self._pools.items():
            num_spare = min(pool.num_slots - pool.most_used, len(pool.free))
            for number in pool.free[: max(num_spare, 0)]:
                if number not in pool.emptied:
                    pool.emptied.add(number)
                    _empty(self._buffers[number].address, size)
            pool.most_used = pool.num_slots - len(pool.free)

    def _make(self, size: int, count: int) -> int:
        """Make slots, the first of which is to be taken first; return their descriptor."""
        descriptor = os.memfd_create("intandem")
        try:
            os.ftruncate(descriptor, count * size)
            with torch.inference_mode(mode=False):  # slots outlive the caller's mode
                memory = mapped(descriptor)
        except (OSError, RuntimeError) as error:
            os.close(descriptor)
            raise OSError(error) from error
        first, pool = len(self._buffers), self._pools[size]
        self._buffers += [Buffer(memory[i * size : (i + 1) * size]) for i in range(count)]
        self._sizes += [size] * count
        pool.free += reversed(range(first, first + count))
        pool.num_slots += count
        return descriptor


def mapped(descriptor: int) -> torch.Tensor:
    """Return the memory of a descriptor, as bytes; the descriptor is not needed for it any more.

    Raises:
        RuntimeError: if it cannot be mapped.
    """
    size, path = os.fstat(descriptor).st_size, f"/proc/self/fd/{descriptor}"
    return torch.from_file(path, shared=True, size=size, dtype=torch.uint8)


def _size_for(num_bytes: int) -> int:
    return max(_SMALLEST, 1 << (num_bytes - 1).bit_length())


def _empty(address: int, num_bytes: int) -> None:
    """Let the system have whole pages back; what is read there is zeros. At worst nothing."""
    start, size = ctypes.c_void_p(address), ctypes.c_size_t(num_bytes)
    ctypes.CDLL(None).madvise(start, size, _MADV_REMOVE)
