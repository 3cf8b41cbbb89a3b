"""Directed edges between ranks, and what each of them has to itself: a communicator, a socket."""

from __future__ import annotations

import logging
import socket
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Protocol, cast

import torch
import torch.distributed as dist

from intandem.errors import RunError
from intandem.runtime.transport.neighbours import can_share_memory, meet
from intandem.runtime.transport.protocol import POLL_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from intandem.runtime.transport.process_group import Membership
    from intandem.runtime.watch import Watch

_log = logging.getLogger(__name__)

_NEVER = timedelta(days=365)
"""No transfer times out by itself: whether a wait has lasted too long is for the watch to say."""


@dataclass(frozen=True, slots=True, order=True)
class Edge:
    """Messages go from rank ``source`` to rank ``target``."""

    source: int
    target: int

    def __str__(self) -> str:
        return f"{self.source}->{self.target}"


class _Backend(Protocol):
    """The part of a c10d backend that is used here; its type stubs leave it out."""

    def send(self, tensors: list[torch.Tensor], target: int, tag: int, /) -> dist.Work: ...

    def recv(self, tensors: list[torch.Tensor], source: int, tag: int, /) -> dist.Work: ...


@dataclass(frozen=True, slots=True)
class Communicator:
    """A communicator of two ranks, used in one direction.

    Attributes:
        backend: moves the bytes.
        peer: index of the other rank in it.
    """

    backend: _Backend
    peer: int

    def send(self, flat: torch.Tensor) -> dist.Work:
        """Begin to send ``flat``, which must stay as it is until the work is done."""
        return self.backend.send([flat], self.peer, 0)

    def recv(self, flat: torch.Tensor) -> dist.Work:
        """Begin to receive into ``flat``; it must have the size of what was sent."""
        return self.backend.recv([flat], self.peer, 0)


Opened = Communicator | socket.socket
"""What an edge is connected by: a communicator; a socket, if its ranks share memory."""


def open_edges(
    membership: Membership,
    edges: Iterable[Edge],
    watch: Watch,
    *,
    device: torch.device,
    timeout_s: float,
    shared_memory: bool,
) -> dict[Edge, Opened]:
    """Connect this rank's edges, each by something of its own.

    A communicator is made by its two members only, and making one waits for the other member.
    Every rank makes its own in sorted order, so the smallest edge not yet made always has both
    members at hand.

    ``new_group`` would not do: it names a group after the number of groups that the process has
    made so far, on which ranks with different numbers of edges do not agree.

    Raises:
        PeerFailureError: if the run fails elsewhere meanwhile.
        RunError: if the other member does not come within ``timeout_s``.
    """
    opened: dict[Edge, Opened] = {}
    deadline = time.monotonic() + timeout_s
    for edge in sorted(set(edges)):
        if membership.rank in (edge.source, edge.target):
            call = partial(_open, membership, edge, device, shared_memory=shared_memory)
            way = opened[edge] = _within(deadline, call, watch, edge)
            kind = "shared memory" if isinstance(way, socket.socket) else membership.backend
            _log.debug("rank=%d edge=%s by=%s", membership.rank, edge, kind)
    return opened


def _open(
    membership: Membership, edge: Edge, device: torch.device, *, shared_memory: bool
) -> Opened:
    store = dist.PrefixStore(f"edge/{edge}", membership.store)
    index = 0 if membership.rank == edge.source else 1
    if membership.backend == "gloo":
        willing = shared_memory and can_share_memory()
        if (connection := meet(store, is_source=index == 0, willing=willing)) is not None:
            return connection
        return Communicator(
            cast("_Backend", dist.ProcessGroupGloo(store, index, 2, _NEVER)), 1 - index
        )
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = _NEVER
    backend = cast("_Backend", dist.ProcessGroupNCCL(store, index, 2, options))
    communicator = Communicator(backend, 1 - index)
    _use_once(communicator, is_source=index == 0, device=device)
    return communicator


def _use_once(communicator: Communicator, *, is_source: bool, device: torch.device) -> None:
    """NCCL connects at the first transfer, and waits for the peer: get that over with now.

    Left to the program, a rank that posts its first receive would wait there for a message
    that its peer can only send once it has heard from this rank.
    """
    byte = torch.zeros(1, dtype=torch.uint8, device=device)
    work = communicator.send(byte) if is_source else communicator.recv(byte)
    work.wait()
    torch.cuda.current_stream(device).synchronize()


def _within(deadline: float, call: Callable[[], Opened], watch: Watch, edge: Edge) -> Opened:
    """Run a call that cannot be interrupted on a thread of its own, and stop waiting in time."""
    outcome: list[Opened | BaseException] = []

    def body() -> None:
        try:
            outcome.append(call())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=body, name=f"connect {edge}", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_S)
        watch.check()
        if time.monotonic() > deadline and thread.is_alive():
            msg = f"edge {edge}: the other rank did not connect in time"
            raise RunError(msg)
    if isinstance(outcome[0], BaseException):
        watch.check()
        msg = f"edge {edge} cannot be connected: {outcome[0]}"
        raise RunError(msg) from outcome[0]
    return outcome[0]
