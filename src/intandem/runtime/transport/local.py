"""Transport between ranks that are threads of one process: tensors are handed over as they are."""

from __future__ import annotations

import queue
import threading
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from intandem.errors import ContractError, PeerFailureError, RunError
from intandem.runtime.transport.contract import check_payload, describe
from intandem.runtime.transport.protocol import MAX_FACTS, POLL_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from intandem.runtime.transport.protocol import Contract, Label, Payload, Seen
    from intandem.runtime.watch import Watch


class _Parcel(NamedTuple):
    """One message under way."""

    label: Label
    payload: Payload
    contract: Contract


_Channel = queue.SimpleQueue[_Parcel | None]
"""Parcels from one rank to another; None says that the sender has left."""


class _Hub:
    """What the transports of one process share."""

    def __init__(self, num_ranks: int) -> None:
        ranks = range(num_ranks)
        self.channels: list[list[_Channel]] = [[queue.SimpleQueue() for _ in ranks] for _ in ranks]
        self.facts: dict[str, bytes] = {}
        self.left: set[int] = set()
        self.changed = threading.Condition()


class LocalTransport:
    """One rank's end; see ``Transport``. Made by ``local_transports``.

    Tensors are not copied unless this rank has a device and they are elsewhere: the receiver
    gets the sender's own tensors, which must be detached.
    """

    def __init__(self, rank: int, hub: _Hub, watch: Watch, device: torch.device | None) -> None:
        self._rank = rank
        self._hub = hub
        self._watch = watch
        self._device = device
        ranks = range(len(hub.channels))
        self._outgoing = hub.channels[rank]
        self._incoming = tuple(hub.channels[peer][rank] for peer in ranks)
        self._posted: tuple[deque[tuple[Label, Contract]], ...] = tuple(deque() for _ in ranks)
        self._published: deque[str] = deque()

    @property
    def rank(self) -> int:
        """This rank."""
        return self._rank

    @property
    def num_ranks(self) -> int:
        """Ranks of the pipeline."""
        return len(self._incoming)

    def send(self, peer: int, label: Label, payload: Payload, contract: Contract) -> None:
        """Hand ``payload`` to rank ``peer``; see ``Transport.send``."""
        check_payload(payload, contract, label, rank=self._rank, peer=peer)
        self._outgoing[peer].put(_Parcel(label, payload, contract))

    def post(self, peer: int, label: Label, contract: Contract) -> None:
        """Make ready to receive ``label`` from ``peer``."""
        self._posted[peer].append((label, contract))

    def wait(self, peer: int, label: Label, *, like: Seen | None = None) -> Payload:
        """Return what was posted as ``label``, once it has arrived; see ``Transport.wait``.

        Raises:
            RunError: if ``label`` is not the oldest receive posted for ``peer``.
        """
        contract = self._posted_contract(peer, label)
        parcel = self._take(peer, label)
        if parcel.label != label or parcel.contract != contract:
            expected, found = (label, contract), (parcel.label, parcel.contract)
            msg = f"rank {self._rank} expected {_text(*expected)} from rank {peer}, got "
            raise ContractError(msg + _text(*found))
        return self._on_device(parcel.payload)

    def verify(self) -> None:
        """Return: a wait has looked at what it returned."""

    def publish(self, key: str, value: bytes) -> None:
        """Put a small fact on the board; see ``Transport.publish``.

        Raises:
            RunError: if ``key`` is there already.
        """
        with self._hub.changed:
            if key in self._hub.facts:
                msg = f"rank {self._rank} publishes {key!r}, which is on the board already"
                raise RunError(msg)
            if len(self._published) == MAX_FACTS:
                del self._hub.facts[self._published.popleft()]
            self._hub.facts[key] = value
            self._published.append(key)
            self._hub.changed.notify_all()

    def read(self, key: str) -> bytes:
        """Return the fact called ``key``, waiting for it; see ``Transport.read``."""
        with self._hub.changed:
            while key not in self._hub.facts:
                self._watch.check()
                if len(self._hub.left - {self._rank}) == self.num_ranks - 1:
                    msg = f"all other ranks left the run; rank {self._rank} still reads {key!r}"
                    raise PeerFailureError(msg)
                self._hub.changed.wait(POLL_S)
            return self._hub.facts[key]

    def close(self) -> None:
        """Tell the other ranks that nothing more will come from this one."""
        for channel in self._outgoing:
            channel.put(None)
        with self._hub.changed:
            self._hub.left.add(self._rank)
            self._hub.changed.notify_all()

    def _posted_contract(self, peer: int, label: Label) -> Contract:
        posted = self._posted[peer]
        if not posted or posted[0][0] != label:
            oldest = posted[0][0] if posted else "nothing"
            msg = f"rank {self._rank} waits for {label} from rank {peer}, but posted {oldest} first"
            raise RunError(msg)
        return posted.popleft()[1]

    def _take(self, peer: int, label: Label) -> _Parcel:
        channel = self._incoming[peer]
        while True:
            self._watch.check()
            try:
                parcel = channel.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if parcel is None:
                channel.put(None)
                self._watch.check()
                msg = f"rank {peer} left the run; rank {self._rank} still waits for {label} from it"
                raise PeerFailureError(msg)
            return parcel

    def _on_device(self, payload: Payload) -> Payload:
        device = self._device
        if device is None:
            return payload
        return tuple(None if t is None else t.to(device) for t in payload)


def local_transports(
    watches: Sequence[Watch], devices: Sequence[torch.device] | None = None
) -> tuple[LocalTransport, ...]:
    """Return one connected transport per watch, that is, per rank.

    Args:
        watches: in rank order.
        devices: where each rank wants the tensors it receives; left out, where they are.
    """
    hub = _Hub(len(watches))
    wanted: Sequence[torch.device | None] = devices or [None] * len(watches)
    ends = enumerate(zip(watches, wanted, strict=True))
    return tuple(LocalTransport(rank, hub, watch, device) for rank, (watch, device) in ends)


def _text(label: Label, contract: Contract) -> str:
    return f"{label} with tensors [{', '.join(map(describe, contract))}]"
