"""What processes tell each other between passes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intandem.errors import RunError
from intandem.runtime.transport.protocol import exchange

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from intandem.pipeline.facade import Pipeline
    from intandem.runtime.transport.protocol import Transport


class Exchange:
    """Small facts between the processes of a pipeline; with one process, with nobody.

    Every process must make the same calls in the same order: each fact says what call it is of, and
    a process that meets another's different call raises.

    Args:
        transport: of this process's rank; None where all ranks are here.
    """

    def __init__(self, transport: Transport | None) -> None:
        self._transport = transport
        self._turn = 0

    @property
    def rank(self) -> int:
        """This process's rank; 0 where all ranks are here."""
        return self._transport.rank if self._transport else 0

    @property
    def num_processes(self) -> int:
        """How many processes there are; 1 where all ranks are here."""
        return self._transport.num_ranks if self._transport else 1

    @property
    def turn(self) -> int:
        """How many facts have been exchanged; the same in every process between calls."""
        return self._turn

    def gather(self, what: str, value: bytes) -> list[bytes]:
        """Return every process's value, in rank order.

        Args:
            what: the call, as a person knows it: ``timeline()``.
            value: of this process.

        Raises:
            RunError: if another process makes another call.
        """
        if self._transport is None:
            return [value]
        self._turn += 1
        facts = exchange(self._transport, f"turn/{self._turn}", _labelled(what, value))
        return [self._value(what, rank, fact) for rank, fact in enumerate(facts)]

    def first(self, what: str, value: bytes) -> bytes:
        """Return rank 0's value. Rank 0 itself does not wait. See ``gather``."""
        if self._transport is None:
            return value
        self._turn += 1
        place = f"turn/{self._turn}/0"
        if self.rank == 0:
            self._transport.publish(place, _labelled(what, value))
            return value
        return self._value(what, 0, self._transport.read(place))

    def leave(self, place: str, value: bytes) -> None:
        """Put a value where other processes can read it whenever they want."""
        if self._transport is not None:
            self._transport.publish(place, value)

    def read(self, place: str) -> bytes:
        """Return what a process has left there, as soon as it has."""
        return b"" if self._transport is None else self._transport.read(place)

    def _value(self, what: str, rank: int, fact: bytes) -> bytes:
        theirs, _, value = fact.partition(b"\n")
        if theirs.decode() != what:
            msg = (
                f"rank {self.rank} calls {what} while rank {rank} calls {theirs.decode()}; every "
                "rank must make the same calls in the same order"
            )
            raise RunError(msg)
        return value


def exchange_of(pipe: Pipeline) -> Exchange:
    """Return what the processes of a pipeline tell each other small facts by."""
    return pipe._exchange


def tell_failure(pipe: Pipeline, error: Exception) -> None:
    """Tell the other processes of a pipeline that this one cannot go on, and why."""
    pipe._assembly.home.fail(error)


def doing(pipe: Pipeline, what: str) -> AbstractContextManager[None]:
    """Tell the others what this process does between steps, while open; they name it in errors."""
    return pipe._assembly.home.doing(what)


def _labelled(what: str, value: bytes) -> bytes:
    return what.encode() + b"\n" + value
