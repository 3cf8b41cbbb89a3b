"""What processes tell each other between passes."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from intandem.runtime.transport.protocol import exchange

if TYPE_CHECKING:
    from intandem.runtime.transport.protocol import Transport


class Exchange:
    """Small facts between the processes of a pipeline; with one process, with nobody.

    Every process must make the same calls in the same order.

    Args:
        transport: of this process's rank; None where all ranks are here.
    """

    def __init__(self, transport: Transport | None) -> None:
        self._transport = transport
        self._calls: Counter[str] = Counter()

    @property
    def rank(self) -> int:
        """This process's rank; 0 where all ranks are here."""
        return self._transport.rank if self._transport else 0

    def gather(self, what: str, value: bytes) -> list[bytes]:
        """Return every process's value, in rank order."""
        if self._transport is None:
            return [value]
        return list(exchange(self._transport, self._key(what), value))

    def first(self, what: str, value: bytes) -> bytes:
        """Return rank 0's value. Rank 0 itself does not wait."""
        if self._transport is None:
            return value
        key = self._key(what)
        if self.rank == 0:
            self._transport.publish(key, value)
            return value
        return self._transport.read(key)

    def _key(self, what: str) -> str:
        self._calls[what] += 1
        return f"{what}/{self._calls[what]}"
