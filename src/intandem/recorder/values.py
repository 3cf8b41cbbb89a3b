"""The tensors of a recording: which value each of them is.

[Note: writes in place] A value's identity is the tensor object. When a call writes to memory, every
other known tensor in that memory becomes a new value made by that call, so that a later reader
depends on the write, on whichever stage it runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class Draft(NamedTuple):
    """A value while it is being recorded."""

    tensor: Tensor
    producer: int
    storage: int
    requires_grad: bool


class Renewal(NamedTuple):
    """What a write in place does: values that are no longer, and storages written to."""

    pairs: tuple[tuple[int, int], ...]
    storages: tuple[int, ...]


_NOTHING = Renewal((), ())


class Values:
    """Values of one recording, found by tensor. Tensors are kept, so that none is mistaken.

    Attributes:
        drafts: of all values, in order.
        value_of: the value that a tensor is now, by the tensor's id.
    """

    def __init__(self) -> None:
        self.drafts: list[Draft] = []
        self.value_of: dict[int, int] = {}
        self._storages: dict[int, int] = {}
        self._tensors_in: dict[int, list[Tensor]] = {}

    def find(self, tensor: Tensor) -> int | None:
        """Return the value that ``tensor`` is now, or None if it is not of this recording."""
        return self.value_of.get(id(tensor))

    def first_producer(self, tensor: Tensor) -> int | None:
        """Return the call that made the memory of ``tensor``; None if it is not known."""
        value = self.find(tensor)
        if value is None:
            return None
        storage = self.drafts[value].storage
        return next(draft.producer for draft in self.drafts if draft.storage == storage)

    def add(self, tensor: Tensor, producer: int) -> int:
        """Make ``tensor`` a new value.

        Args:
            tensor: known or not.
            producer: index of the call that made it, or -1 for a tensor of the batch.
        """
        key = _storage_key(tensor)
        storage = self._storages.get(key)
        if storage is None:
            storage = self._storages[key] = len(self._storages)
            self._tensors_in[storage] = [tensor]
        elif not any(other is tensor for other in self._tensors_in[storage]):
            self._tensors_in[storage].append(tensor)
        value = self.value_of[id(tensor)] = len(self.drafts)
        self.drafts.append(Draft(tensor, producer, storage, tensor.requires_grad))
        return value

    def renew(self, written: Sequence[Tensor], results: list[Tensor], producer: int) -> Renewal:
        """Make new values of what shares memory with ``written``; see [Note: writes in place].

        Args:
            written: tensors that a call wrote to.
            results: what the call returned, which are new values already.
            producer: index of the call.
        """
        if not written:
            return _NOTHING
        keys = {_storage_key(tensor) for tensor in written}
        storages = sorted(self._storages[key] for key in keys if key in self._storages)
        pairs = []
        for storage in storages:
            for tensor in list(self._tensors_in.get(storage, ())):
                if not any(result is tensor for result in results):
                    old = self.value_of[id(tensor)]
                    pairs.append((old, self.add(tensor, producer)))
        return Renewal(tuple(pairs), tuple(storages))


def version_of(tensor: Tensor) -> int:
    """Return how often ``tensor`` has been written to; -1 where torch does not count."""
    return -1 if tensor.is_inference() else tensor._version


def _storage_key(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse and nested tensors have none
        return -id(tensor)
