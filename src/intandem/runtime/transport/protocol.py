"""What the executor needs of a transport, and what a message must promise.

A transport moves the tensors of one message from one rank to another, first in first out per
directed pair of ranks, and holds a board of small facts that every rank can read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor


POLL_S = 0.02
"""How often a waiting rank looks whether the run has failed elsewhere."""

MAX_FACTS = 1024
"""Facts of one rank that stay on the board; the oldest goes when one more is published."""


class TensorSpec(NamedTuple):
    """Shape and dtype that one tensor of a message must have."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Label(NamedTuple):
    """Identity of a message: checked on arrival.

    Attributes:
        step: number of the step it belongs to.
        tag: text unique within the step, such as ``0F3>1``.
    """

    step: int
    tag: str

    def __str__(self) -> str:
        return f"{self.tag} of step {self.step}"


Contract = tuple[TensorSpec, ...]
"""What each tensor of a message looks like; both ends derive it from the same recording."""

Payload = tuple["Tensor | None", ...]
"""Tensors of a message. None stands for a gradient that is not defined."""


Seen = dict[tuple[int, str], int]
"""Which tensors of a message were there, a bit for each; by its peer and its tag."""


class Transport(Protocol):
    """Moves messages between ranks. One object per rank.

    It is used by that rank's thread of work, but for ``publish``, which any thread may call.
    Every wait ends with ``PeerFailureError`` once the run has failed elsewhere.
    """

    @property
    def rank(self) -> int:
        """This rank."""
        ...

    @property
    def num_ranks(self) -> int:
        """Ranks of the pipeline."""
        ...

    def send(self, peer: int, label: Label, payload: Payload, contract: Contract) -> None:
        """Hand ``payload`` to rank ``peer``. Returns without waiting for it to arrive.

        The tensors belong to the receiver from now on: they are not written to again.

        Raises:
            ContractError: if a tensor is not what ``contract`` says.
        """
        ...

    def post(self, peer: int, label: Label, contract: Contract) -> None:
        """Make ready to receive ``label`` from ``peer``; posts are matched in order."""
        ...

    def wait(self, peer: int, label: Label, *, like: Seen | None = None) -> Payload:
        """Return what was posted as ``label``, once it has arrived.

        ``like`` is the same for messages that have the same tensors undefined if their tags are
        equal, which a transport may rely on until ``verify``; None where that cannot be said.

        Raises:
            ContractError: if something else arrived in its place.
            PeerFailureError: if the run has failed on another rank.
        """
        ...

    def verify(self) -> None:
        """Return once it is known that all that was waited for is what it was posted as.

        Called before what was received is used for good: a wait may leave that to be found later.

        Raises:
            ContractError: if it is not.
            PeerFailureError: if the run has failed on another rank.
        """
        ...

    def publish(self, key: str, value: bytes) -> None:
        """Put a small fact on the board, for any rank to read. A key is written once.

        The board does not grow for ever: of each rank, the last ``MAX_FACTS`` facts can be read.
        """
        ...

    def read(self, key: str) -> bytes:
        """Return the fact called ``key``, waiting until some rank has published it.

        Raises:
            PeerFailureError: if the run has failed on another rank.
        """
        ...

    def close(self) -> None:
        """Let go of threads and connections. Pending sends are finished first."""
        ...


def exchange(transport: Transport, key: str, value: bytes) -> Sequence[bytes]:
    """Publish ``value`` and return every rank's, in rank order. All ranks must call it."""
    transport.publish(f"{key}/{transport.rank}", value)
    return [transport.read(f"{key}/{rank}") for rank in range(transport.num_ranks)]
