"""How two ranks come by a socket: the target listens, and says where in the store."""

from __future__ import annotations

import secrets
import socket
import struct
import time
from typing import TYPE_CHECKING

from intandem.errors import RunError
from intandem.runtime.transport.edges import Edge
from intandem.runtime.transport.protocol import POLL_S

if TYPE_CHECKING:
    from collections.abc import Iterable

    from intandem.runtime.transport.process_group import Membership
    from intandem.runtime.watch import Watch

_HELLO = struct.Struct("<16sI")
"""The target's secret, read in the store, and the source's rank."""

_HELLO_S = 2.0


def open_sockets(
    membership: Membership, edges: Iterable[Edge], watch: Watch, *, timeout_s: float
) -> dict[Edge, socket.socket]:
    """Connect this rank's edges, one TCP connection each.

    Whoever connects must show what the store holds; the listener goes when all are there.

    Raises:
        PeerFailureError: if the run fails elsewhere meanwhile.
        RunError: if another rank does not come within ``timeout_s``.
    """
    return _Meeting(membership, watch, time.monotonic() + timeout_s).hold(set(edges))


class _Meeting:
    """One rank's part in connecting."""

    def __init__(self, membership: Membership, watch: Watch, deadline: float) -> None:
        self._membership = membership
        self._watch = watch
        self._deadline = deadline

    def hold(self, edges: set[Edge]) -> dict[Edge, socket.socket]:
        """Listen, connect to all targets, then let all sources in."""
        rank = self._membership.rank
        sources = {edge.source for edge in edges if edge.target == rank}
        targets = sorted(edge.target for edge in edges if edge.source == rank)
        secret = secrets.token_bytes(16)
        with socket.create_server((self._membership.host, 0), backlog=len(sources) + 8) as server:
            place = f"{server.getsockname()[1]} {secret.hex()} {self._membership.host}"
            self._membership.store.set(f"socket/{rank}", place)
            opened = {Edge(rank, target): self._connect(target) for target in targets}
            server.settimeout(POLL_S)
            while sources:
                self._still(f"ranks {sorted(sources)} did not connect to rank {rank}")
                if (came := _let_in(server, secret)) is not None and came[0] in sources:
                    sources.remove(came[0])
                    opened[Edge(came[0], rank)] = came[1]
        return opened

    def _connect(self, target: int) -> socket.socket:
        key, store = f"socket/{target}", self._membership.store
        while not store.check([key]):
            self._still(f"rank {target} does not say where it listens")
            time.sleep(POLL_S)
        port, secret, host = store.get(key).decode().split(" ")
        try:
            connection = socket.create_connection((host, int(port)), timeout=_HELLO_S)
        except OSError as error:
            self._watch.check()
            msg = f"rank {self._membership.rank} cannot connect to rank {target}: {error}"
            raise RunError(msg) from error
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(_HELLO.pack(bytes.fromhex(secret), self._membership.rank))
        return connection

    def _still(self, problem: str) -> None:
        self._watch.check()
        if time.monotonic() > self._deadline:
            msg = f"{problem} in time"
            raise RunError(msg)


def _let_in(server: socket.socket, secret: bytes) -> tuple[int, socket.socket] | None:
    """Accept one connection and read who it is; None if nobody came, or a stranger did."""
    try:
        connection, _ = server.accept()
    except TimeoutError:
        return None
    connection.settimeout(_HELLO_S)
    try:
        hello = connection.recv(_HELLO.size, socket.MSG_WAITALL)
    except OSError:
        hello = b""
    shown, source = _HELLO.unpack(hello.ljust(_HELLO.size, b"\0"))
    if not secrets.compare_digest(shown, secret):
        connection.close()
        return None
    return source, connection
