"""How long messages take between idle ranks: measured by sending them to and fro, before a run.

One pair of ranks after another, so that none is measured while another is busy. Each rests before
it sends, for as long as an action takes, so that the other has been asleep and has to be woken, and
what both run has left the processors' caches, as in a step::

    rank 0   rest  send  wait .............  rest  send  ...
    rank 1   wait ............  rest  send  wait .......
                   |<-- two ways and a rest -->|
"""

from __future__ import annotations

import json
import math
import statistics
import time
from typing import TYPE_CHECKING, NamedTuple

from intandem.machine import Link, Machine
from intandem.rehearsal.emulation import contract_of, payload_of
from intandem.runtime.transport.protocol import Label

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from intandem.costs import CostModel
    from intandem.ir import Program
    from intandem.rehearsal.waits import Waiter
    from intandem.runtime.transport.protocol import Transport

_NUM_FIRST = 3
"""Round trips that are not counted."""

_NUM_ROUNDS = 15
_LEAST_REST_S, _MOST_REST_S = 1e-3, 20e-3

Pair = tuple[int, int]
"""Two ranks, the lower one first."""


class Transfer(NamedTuple):
    """What a message was found to take.

    Attributes:
        low: one of the ranks.
        high: the other.
        num_bytes: of the message.
        seconds: one way, the median of several.
    """

    low: int
    high: int
    num_bytes: int
    seconds: float


def sizes_between(program: Program, costs: CostModel) -> dict[Pair, set[int]]:
    """Return the bytes of the messages that each pair of ranks exchanges."""
    sizes: dict[Pair, set[int]] = {}
    for source, target in (*program.links.activations, *program.links.gradients):
        for rank_of in program.placement.rows:
            low, high = sorted((rank_of[source], rank_of[target]))
            if low != high:
                sizes.setdefault((low, high), set()).add(costs.message_bytes(source, target))
    return sizes


def measure(
    transport: Transport,
    waiter: Waiter,
    sizes: Mapping[Pair, Iterable[int]],
    sequence: int,
    *,
    action_s: float,
) -> list[Transfer]:
    """Do this rank's part in measuring every pair. All ranks must call it, with the same arguments.

    Args:
        transport: this rank's end.
        waiter: of the calling thread.
        sizes: bytes to be measured, by pair; empty messages are measured as well.
        sequence: number of the pass; labels messages.
        action_s: what an action takes.

    Returns:
        What was found for all pairs, the same on every rank.
    """
    ends = _Ends(transport, waiter, sequence, rest_s(action_s))
    before: Pair | None = None
    for pair in sorted(sizes):
        if transport.rank == pair[0]:
            if before is not None:
                transport.read(_key(before, sequence))
            here = [ends.to_and_fro(pair[1], num_bytes) for num_bytes in _all_sizes(sizes[pair])]
            transport.publish(_key(pair, sequence), json.dumps(here).encode())
        elif transport.rank == pair[1]:
            for num_bytes in _all_sizes(sizes[pair]):
                ends.answer(pair[0], num_bytes)
        before = pair
    told = [json.loads(transport.read(_key(pair, sequence))) for pair in sorted(sizes)]
    return [Transfer(*one) for found in told for one in found]


def rest_s(action_s: float) -> float:
    """Return how long to rest before a message is sent, where an action takes ``action_s``."""
    return min(max(action_s, _LEAST_REST_S), _MOST_REST_S)


def machine_of(transfers: Iterable[Transfer], num_ranks: int) -> Machine:
    """Return the links on which messages take what was found.

    What an empty message takes is a link's latency; its bandwidth is what the largest takes more.
    """
    by_pair: dict[Pair, list[Transfer]] = {}
    for transfer in transfers:
        by_pair.setdefault((transfer.low, transfer.high), []).append(transfer)
    links: dict[Pair, Link] = {}
    for (low, high), found in by_pair.items():
        links[low, high] = links[high, low] = _link(found)
    return Machine(num_ranks, links=links)


def _link(found: Sequence[Transfer]) -> Link:
    by_size = sorted(found, key=lambda transfer: transfer.num_bytes)
    least, largest = by_size[0], by_size[-1]
    more_s = largest.seconds - least.seconds
    if largest.num_bytes == 0 or more_s <= 0:
        return Link(least.seconds, math.inf)
    return Link(least.seconds, largest.num_bytes / more_s)


class _Ends:
    """This rank's end of the pairs that it is in."""

    def __init__(self, transport: Transport, waiter: Waiter, sequence: int, rest_s: float) -> None:
        self._transport = transport
        self._waiter = waiter
        self._sequence = sequence
        self._rest_s = rest_s

    def to_and_fro(self, high: int, num_bytes: int) -> Transfer:
        """Send to rank ``high`` and wait for what it answers, several times."""
        times_s = []
        for number in range(_NUM_FIRST + _NUM_ROUNDS):
            to, fro = self._labels(num_bytes, number)
            self._transport.post(high, fro, contract_of(num_bytes))
            self._rest()
            began_s = time.perf_counter()
            self._send(high, to, num_bytes)
            self._transport.wait(high, fro)
            times_s.append((time.perf_counter() - began_s - self._rest_s) / 2)
        seconds = statistics.median(times_s[_NUM_FIRST:])
        return Transfer(self._transport.rank, high, num_bytes, max(seconds, 0.0))

    def answer(self, low: int, num_bytes: int) -> None:
        """Wait for what rank ``low`` sends, rest and answer, as often as it sends."""
        for number in range(_NUM_FIRST + _NUM_ROUNDS):
            to, fro = self._labels(num_bytes, number)
            self._transport.post(low, to, contract_of(num_bytes))
            self._transport.wait(low, to)
            self._rest()
            self._send(low, fro, num_bytes)

    def _rest(self) -> None:
        self._waiter.until(time.perf_counter() + self._rest_s)

    def _send(self, peer: int, label: Label, num_bytes: int) -> None:
        self._transport.send(peer, label, payload_of(num_bytes), contract_of(num_bytes))

    def _labels(self, num_bytes: int, number: int) -> tuple[Label, Label]:
        text = f"{number} {num_bytes}"
        return Label(self._sequence, f"to {text}"), Label(self._sequence, f"fro {text}")


def _all_sizes(sizes: Iterable[int]) -> list[int]:
    return sorted({0, *sizes})


def _key(pair: Pair, sequence: int) -> str:
    return f"transfers/{sequence}/{pair[0]}/{pair[1]}"
