"""Transport between processes, over torch.distributed: Gloo, or NCCL.

[Note: labels on a GPU] A host that reads what has arrived in a GPU's memory waits for all that the
GPU was given before, and gives it nothing meanwhile. So over NCCL only the GPU waits for a message,
and labels are read when the step is over (``verify``), or once ``MAX_AHEAD`` more messages of the
edge have been asked for. Which of its gradients are undefined must be known at once: they are taken
to be those of the first message that was ``like`` it, and the host waits for one that is like none
before. What is undefined travels as zeros, so a gradient that is missed for once is a zero.
NCCL has not been run on several GPUs.
"""

from __future__ import annotations

import time
from collections import deque
from functools import partial
from socket import socket
from typing import TYPE_CHECKING, NamedTuple, NoReturn, cast

import torch

from intandem.errors import ContractError, PeerFailureError, RunError
from intandem.runtime.transport.contract import check_payload
from intandem.runtime.transport.edges import Edge, open_edges
from intandem.runtime.transport.lanes import MAX_AHEAD, Arrived, Incoming, Outgoing, Transfer
from intandem.runtime.transport.packing import (
    Buffer,
    Layout,
    layout_of,
    pack,
    read_prefix,
    unpack,
)
from intandem.runtime.transport.protocol import MAX_FACTS, POLL_S
from intandem.runtime.transport.shared_memory import SharedIncoming, SharedOutgoing

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from intandem.runtime.transport.process_group import Membership
    from intandem.runtime.transport.protocol import Contract, Label, Payload, Seen
    from intandem.runtime.watch import Watch

VERDICT_S = 4.0
"""How long a rank that lost a connection waits to be told who is to blame."""

CLOSE_S = 5.0
"""How long closing waits for pending sends."""

_NUM_TRANSFERS_KEPT = 32
_NUM_LAYOUTS_KEPT = 256
_LONGEST_PAUSE_S = 0.002


class _Unread(NamedTuple):
    """A message that was waited for, whose label has not been read."""

    label: Label
    layout: Layout
    seen: Seen


class DistributedTransport:
    """One process's end; see ``Transport``. Made by ``connect``.

    Received tensors live in fresh memory, one piece per message. A message longer than what its
    receiver has posted would end the receiver's process, so both ends must derive the contract
    of an edge from the same recording; everything else that can be wrong is found on arrival.
    """

    def __init__(
        self,
        membership: Membership,
        outgoing: Mapping[int, Outgoing | SharedOutgoing],
        incoming: Mapping[int, Incoming | SharedIncoming],
        watch: Watch,
        wire: torch.device,
    ) -> None:
        self._membership = membership
        self._outgoing = outgoing
        self._incoming = incoming
        self._watch = watch
        self._wire = wire
        self._posted: dict[int, deque[tuple[Label, Layout]]] = {p: deque() for p in incoming}
        self._unread: dict[int, deque[_Unread]] = {p: deque() for p in incoming}
        self._layouts: dict[Contract, Layout] = {}
        self._published: deque[str] = deque()
        self._transfers: deque[Transfer] = deque(maxlen=_NUM_TRANSFERS_KEPT)
        self._closed = False

    @property
    def rank(self) -> int:
        """This rank."""
        return self._membership.rank

    @property
    def num_ranks(self) -> int:
        """Ranks of the pipeline."""
        return self._membership.num_ranks

    @property
    def shares_memory(self) -> bool:
        """Whether all of this rank's messages go through memory that it shares."""
        lanes = (*self._outgoing.values(), *self._incoming.values())
        return all(isinstance(lane, SharedOutgoing | SharedIncoming) for lane in lanes)

    @property
    def transfers(self) -> tuple[str, ...]:
        """The last transfers of this rank, oldest first: message, peer and state."""
        return tuple(map(str, self._transfers))

    def send(self, peer: int, label: Label, payload: Payload, contract: Contract) -> None:
        """Begin to send ``payload`` to rank ``peer``; see ``Transport.send``.

        Raises:
            PeerFailureError: if the connection is lost.
        """
        lane = self._outgoing.get(peer) or self._no_edge(Edge(self.rank, peer))
        check_payload(payload, contract, label, rank=self.rank, peer=peer)
        while lane.error is None and not lane.take_room(POLL_S):
            self._check()
        layout = self._layout(contract)
        fill = partial(pack, payload, layout, label)
        lane.send(layout, fill, self._begin(label, f"to rank {peer}"))
        if lane.error is not None:
            self._lost(f"sending {label} to rank {peer}", lane.error)

    def post(self, peer: int, label: Label, contract: Contract) -> None:
        """Begin to receive ``label`` from ``peer``."""
        lane = self._incoming.get(peer) or self._no_edge(Edge(peer, self.rank))
        layout = self._layout(contract)
        lane.post(layout, self._begin(label, f"from rank {peer}"))
        self._posted[peer].append((label, layout))

    def wait(self, peer: int, label: Label, *, like: Seen | None = None) -> Payload:
        """Return what was posted as ``label``, once it has arrived; see ``Transport.wait``.

        Raises:
            RunError: if ``label`` is not the oldest receive posted for ``peer``.
        """
        layout = self._posted_layout(peer, label)
        if self._wire.type == "cpu":
            buffer = cast("Buffer", self._take(peer, label))
            try:
                return unpack(buffer, layout, label)
            except ContractError as error:
                self._refuse(peer, error)
        seen, unread = {} if like is None else like, self._unread[peer]
        if len(unread) == MAX_AHEAD:
            self._read_prefix(peer)
        unread.append(_Unread(label, layout, seen))
        try:
            buffer = cast("Incoming", self._incoming[peer]).follow()
        except RuntimeError as error:
            self._lost(f"waiting for {label} from rank {peer}", error)
        if (peer, label.tag) not in seen:
            self._read_prefixes(peer)
        return buffer.present(layout, seen[peer, label.tag])

    def verify(self) -> None:
        """Read the labels of messages in a GPU's memory; see ``Transport.verify``."""
        for peer in self._unread:
            self._read_prefixes(peer)
        for lane in self._outgoing.values():
            lane.tidy()

    def publish(self, key: str, value: bytes) -> None:
        """Put a small fact on the board; see ``Transport.publish``.

        That a key is written once is up to the caller: the store would write over it.
        """
        try:
            if len(self._published) == MAX_FACTS:
                self._membership.store.delete_key(self._published.popleft())
            self._membership.store.set(_place(key), value)  # type: ignore[arg-type]  # bytes do
        except RuntimeError as error:
            self._lost(f"publishing {key!r}", error)
        self._published.append(_place(key))

    def read(self, key: str) -> bytes:
        """Return the fact called ``key``, waiting for it; see ``Transport.read``."""
        store, place, pause_s = self._membership.store, _place(key), 1e-4
        try:
            while not store.check([place]):
                self._check()
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            return store.get(place)
        except RuntimeError as error:
            self._lost(f"reading {key!r}", error)

    def close(self) -> None:
        """Finish pending sends and let go of the connections, within ``CLOSE_S``.

        Once the run has failed nothing is waited for. Receives that never arrived, and sends
        that nobody takes, are left to the end of the process.
        """
        if self._closed:
            return
        self._closed = True
        for outgoing in self._outgoing.values():
            outgoing.close()
        deadline = time.monotonic() + CLOSE_S
        for outgoing in self._outgoing.values():
            while not outgoing.join(POLL_S) and time.monotonic() < deadline and self._is_healthy():
                pass
        for peer, incoming in self._incoming.items():
            incoming.close()
            incoming.join(0.0 if self._posted[peer] else 1.0)

    def _read_prefixes(self, peer: int) -> None:
        """[Note: labels on a GPU]: wait for all that ``peer`` has sent, and look at it."""
        while self._unread[peer]:
            self._read_prefix(peer)

    def _read_prefix(self, peer: int) -> None:
        label, layout, seen = self._unread[peer].popleft()
        prefix = cast("bytes", self._take(peer, label))  # it is in a GPU's memory
        try:
            present = read_prefix(prefix, layout, label)
        except ContractError as error:
            self._refuse(peer, error)
        before = seen.setdefault((peer, label.tag), present)
        if present & ~before:
            msg = (
                f"{label}: gradients are there ({_bits(present, layout)}, the first tensor "
                f"first) that were undefined before ({_bits(before, layout)}), and have not "
                "been used; between GPUs, each value that stages hand on must be read in the "
                "same micro-batches of every step: add 0 * value where it is not"
            )
            self._refuse(peer, ContractError(msg))

    def _refuse(self, peer: int, error: ContractError) -> NoReturn:
        msg = f"rank {self.rank} receiving from rank {peer}: {error}"
        raise ContractError(msg) from None

    def _begin(self, label: Label, route: str) -> Transfer:
        transfer = Transfer(label, route)
        self._transfers.append(transfer)
        return transfer

    def _layout(self, contract: Contract) -> Layout:
        if (layout := self._layouts.get(contract)) is None:
            if len(self._layouts) == _NUM_LAYOUTS_KEPT:
                self._layouts.clear()
            layout = self._layouts[contract] = layout_of(contract)
        return layout

    def _posted_layout(self, peer: int, label: Label) -> Layout:
        posted = self._posted.get(peer)
        if not posted or posted[0][0] != label:
            oldest = posted[0][0] if posted else "nothing"
            msg = f"rank {self.rank} waits for {label} from rank {peer}, but posted {oldest} first"
            raise RunError(msg)
        return posted.popleft()[1]

    def _take(self, peer: int, label: Label) -> Arrived:
        lane = self._incoming[peer]
        while (got := lane.take(POLL_S)) is None:
            self._check()
        if isinstance(got, RuntimeError):
            self._lost(f"waiting for {label} from rank {peer}", got)
        return got

    def _check(self) -> None:
        """Raise if the run has failed elsewhere or something sent cannot arrive."""
        self._watch.check()
        for peer, lane in self._outgoing.items():
            if lane.error is not None:
                self._lost(f"sending to rank {peer}", lane.error)

    def _is_healthy(self) -> bool:
        try:
            self._watch.check()
        except RunError:
            return False
        return True

    def _lost(self, doing: str, error: Exception) -> NoReturn:
        """Wait for the verdict on why a connection was lost, else report what is known here."""
        self._watch.suspect(f"rank {self.rank} lost its connection {doing}: {error}")
        for lane in self._outgoing.values():
            lane.settle()
        deadline = time.monotonic() + VERDICT_S
        while time.monotonic() < deadline:
            self._watch.check()
            time.sleep(POLL_S)
        last = "".join(f"\n  {transfer}" for transfer in self._transfers)
        msg = f"rank {self.rank} lost its connection {doing}: {error}\nlast transfers:{last}"
        raise PeerFailureError(msg) from error

    def _no_edge(self, edge: Edge) -> NoReturn:
        msg = f"rank {self.rank} has no edge {edge}; name it when connecting"
        raise RunError(msg)


def connect(
    membership: Membership,
    edges: Iterable[Edge],
    watch: Watch,
    *,
    device: torch.device,
    timeout_s: float = 300.0,
    shared_memory: bool = True,
) -> DistributedTransport:
    """Connect this rank with its neighbours. All ranks must call it, with the same edges.

    Args:
        membership: this process's place.
        edges: every pair of ranks that will exchange messages.
        watch: knows when the run has failed elsewhere.
        device: where this rank wants the tensors it receives.
        timeout_s: how long neighbours may take to connect, in seconds.
        shared_memory: whether CPU ranks of one machine hand messages over in memory that both
            have mapped, instead of by Gloo. Where one end of an edge says no, it is Gloo's.

    Raises:
        PeerFailureError: if the run fails elsewhere meanwhile.
        RunError: if a neighbour does not come.
    """
    opened = open_edges(
        membership, edges, watch, device=device, timeout_s=timeout_s, shared_memory=shared_memory
    )
    rank = membership.rank
    wire = device if membership.backend == "nccl" else torch.device("cpu")
    outgoing: dict[int, Outgoing | SharedOutgoing] = {}
    incoming: dict[int, Incoming | SharedIncoming] = {}
    for edge, way in opened.items():
        if edge.source == rank:
            outgoing[edge.target] = (
                SharedOutgoing(way)
                if isinstance(way, socket)
                else Outgoing(way, f"send {edge}", wire)
            )
        else:
            incoming[edge.source] = (
                SharedIncoming(way)
                if isinstance(way, socket)
                else Incoming(way, f"recv {edge}", wire, watch.tick)
            )
    return DistributedTransport(membership, outgoing, incoming, watch, wire)


def _place(key: str) -> str:
    return f"board/{key}"


def _bits(present: int, layout: Layout) -> str:
    """Say which tensors are there: 1 for those that are, the first one first."""
    return f"{present:0{len(layout.places)}b}"[::-1]
