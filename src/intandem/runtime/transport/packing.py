"""One message as one run of bytes: a header, which tensors are there, and the tensors.

::

    0            128                                           num_bytes
    | header     | presence | pad | tensor 0   | pad | tensor 1   |
                                  ^ every tensor begins at a multiple of 64

Where each tensor lies follows from the contract alone, so both ends know the size of a message
before it is sent. An undefined gradient keeps its place; its bytes mean nothing.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch

from intandem.errors import ContractError
from intandem.runtime.transport.contract import describe
from intandem.runtime.transport.protocol import Label

if TYPE_CHECKING:
    from torch import Tensor

    from intandem.runtime.transport.protocol import Contract, Payload, TensorSpec

_HEADER = struct.Struct("<6sHqQ8s8sH86s")
"""magic, version, step, bytes in all, layout's checksum, tag's checksum, tag's length, tag."""

_MAGIC, _VERSION = b"INTAND", 1
_TAG_BYTES = 86
_ALIGNMENT = 64
_NUM_LAYOUTS_KEPT = 4


class Place(NamedTuple):
    """Where one tensor lies: ``offset`` and ``strides`` count elements of its dtype."""

    spec: TensorSpec
    offset: int
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Where the tensors of a contract lie in a message. Two are equal if they are one object.

    Attributes:
        places: of the tensors, in order.
        prefix_bytes: size of the header and the presence bits.
        num_bytes: size of the message.
        checksum: 8 bytes that stand for all shapes and dtypes.
    """

    places: tuple[Place, ...]
    prefix_bytes: int
    num_bytes: int
    checksum: bytes

    def __str__(self) -> str:
        return f"[{', '.join(describe(place.spec) for place in self.places)}]"


class Buffer:
    """Memory of a message, ``(num_bytes,)`` uint8 or more, and the tensors that lie in it.

    Args:
        flat: the memory.
    """

    __slots__ = ("_tensors", "address", "flat")

    def __init__(self, flat: Tensor) -> None:
        self.flat = flat
        self.address = flat.data_ptr()
        self._tensors: dict[Layout, tuple[Tensor, ...]] = {}

    def tensors(self, layout: Layout) -> tuple[Tensor, ...]:
        """Return the tensors of a layout, always the same ones, which live in this memory."""
        if (found := self._tensors.get(layout)) is None:
            if len(self._tensors) == _NUM_LAYOUTS_KEPT:
                self._tensors.clear()
            found = self._tensors[layout] = self._made(layout)
        return found

    def _made(self, layout: Layout) -> tuple[Tensor, ...]:
        """Make tensors as the memory was, in inference mode or not, whoever asks."""
        if self.flat.is_inference() is not torch.is_inference_mode_enabled():
            with torch.inference_mode(self.flat.is_inference()):
                return self._made(layout)
        return tuple([_alias(self.flat, place) for place in layout.places])

    def present(self, layout: Layout, present: int) -> Payload:
        """Return the tensors whose bits are set in ``present``; None in place of the others."""
        tensors = self.tensors(layout)
        if present == (1 << len(tensors)) - 1:
            return tensors
        return tuple([t if present >> index & 1 else None for index, t in enumerate(tensors)])


def buffer_for(layout: Layout, device: torch.device) -> Buffer:
    """Return memory for one message, with its tensors made."""
    buffer = Buffer(torch.empty(layout.num_bytes, dtype=torch.uint8, device=device))
    buffer.tensors(layout)
    return buffer


def layout_of(contract: Contract) -> Layout:
    """Lay out the tensors of ``contract``, in order."""
    places = []
    prefix_bytes = end = _HEADER.size + (len(contract) + 7) // 8
    for spec in contract:
        start = -(-end // _ALIGNMENT) * _ALIGNMENT
        places.append(Place(spec, start // spec.dtype.itemsize, _strides(spec.shape)))
        end = start + math.prod(spec.shape) * spec.dtype.itemsize
    checksum = _digest(" ".join(map(describe, contract)))
    return Layout(tuple(places), prefix_bytes, end, checksum)


def pack(payload: Payload, layout: Layout, label: Label, buffer: Buffer) -> None:
    """Write ``payload`` as a message into a buffer of at least ``layout.num_bytes``.

    The tensors must be what the contract says; ``check_payload`` sees to that. They may lie
    anywhere in memory, with any strides.
    """
    flat, present = buffer.flat, 0
    for index, (tensor, place) in enumerate(zip(payload, buffer.tensors(layout), strict=True)):
        if tensor is not None:
            present |= 1 << index
            place.copy_(tensor.detach() if tensor.requires_grad else tensor)
        elif not flat.is_cpu:  # whose reader may not know yet that it is not there
            place.zero_()
    size = layout.prefix_bytes
    prefix = _header(label, layout) + present.to_bytes(size - _HEADER.size, "little")
    if flat.is_cpu:
        ctypes.memmove(buffer.address, prefix, size)
    else:
        pinned = torch.frombuffer(bytearray(prefix), dtype=torch.uint8).pin_memory()
        flat[:size].copy_(pinned, non_blocking=True)  # from other memory, the host would wait


def unpack(buffer: Buffer, layout: Layout, label: Label) -> Payload:
    """Return the tensors of a message in the host's memory, which is theirs from now on.

    Raises:
        ContractError: as ``read_prefix``.
    """
    prefix = ctypes.string_at(buffer.address, layout.prefix_bytes)
    return buffer.present(layout, read_prefix(prefix, layout, label))


def read_prefix(prefix: bytes, layout: Layout, label: Label) -> int:
    """Return which tensors of a message are there, a bit for each.

    Raises:
        ContractError: if what it begins with is not the header of ``label`` with this layout.
    """
    _check_header(prefix, layout, label)
    present = int.from_bytes(prefix[_HEADER.size :], "little")
    if present >> len(layout.places):
        msg = f"{label}: {present.bit_count()} tensor(s) marked, expected {len(layout.places)}"
        raise ContractError(msg)
    return present


def _alias(flat: Tensor, place: Place) -> Tensor:
    """A tensor in the memory of ``flat``.

    Not a view: views share one version counter, and writing to one received tensor in place
    would make autograd refuse the others.
    """
    spec = place.spec
    empty = torch.empty(0, dtype=spec.dtype, device=flat.device)
    start = flat.storage_offset() // spec.dtype.itemsize + place.offset
    return empty.set_(flat.untyped_storage(), start, spec.shape, place.strides)


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape)))


def _header(label: Label, layout: Layout) -> bytes:
    tag = label.tag.encode()
    return _HEADER.pack(
        _MAGIC,
        _VERSION,
        label.step,
        layout.num_bytes,
        layout.checksum,
        _digest(label.tag),
        len(tag),
        tag[:_TAG_BYTES],
    )


def _check_header(prefix: bytes, layout: Layout, label: Label) -> None:
    if prefix[: _HEADER.size] == _header(label, layout):
        return
    msg = f"expected {label} with {layout}, got {_describe_header(prefix, layout)}"
    raise ContractError(msg)


def _describe_header(prefix: bytes, layout: Layout) -> str:
    fields = _HEADER.unpack_from(prefix)
    magic, version, step, num_bytes, checksum, _, length, tag = fields
    if (magic, version) != (_MAGIC, _VERSION):
        return f"bytes that are no message of version {_VERSION}: {prefix[:16].hex(' ')}"
    sender = Label(step, tag[:length].decode(errors="replace"))
    if (num_bytes, checksum) != (layout.num_bytes, layout.checksum):
        return f"{sender} with other tensors, {num_bytes} bytes instead of {layout.num_bytes}"
    return str(sender)


@lru_cache(maxsize=4096)  # a step has the tags of the one before
def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
