"""How long messages take between idle ranks: measured by sending them to and fro, before a run.

One pair of ranks after another, so that none is measured while another is busy::

    rank 0   send · wait · send · wait · ...    half of the time to and fro is one way
    rank 1   wait · send · wait · send · ...
"""

from __future__ import annotations

import json
import math
import statistics
import time
from typing import TYPE_CHECKING, NamedTuple

import torch

from intandem.machine import Link, Machine
from intandem.rehearsal.emulation import contract_of
from intandem.runtime.transport.protocol import Label

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from intandem.costs import CostModel
    from intandem.ir import Program
    from intandem.runtime.transport.protocol import Transport

_NUM_FIRST = 5
"""Round trips that are not counted."""

_NUM_ROUNDS = 21

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
    transport: Transport, sizes: Mapping[Pair, Iterable[int]], sequence: int
) -> list[Transfer]:
    """Do this rank's part in measuring every pair. All ranks must call it, with the same sizes.

    Args:
        transport: this rank's end.
        sizes: bytes to be measured, by pair; empty messages are measured as well.
        sequence: number of the pass; labels messages.

    Returns:
        What was found for all pairs, the same on every rank.
    """
    found: list[Transfer] = []
    before: Pair | None = None
    for pair in sorted(sizes):
        if transport.rank == pair[0]:
            if before is not None:
                transport.read(_key(before, sequence))
            here = [_to_and_fro(transport, pair, n, sequence) for n in _all_sizes(sizes[pair])]
            transport.publish(_key(pair, sequence), json.dumps(here).encode())
        elif transport.rank == pair[1]:
            for num_bytes in _all_sizes(sizes[pair]):
                _answer(transport, pair, num_bytes, sequence)
        before = pair
    for pair in sorted(sizes):
        found += [Transfer(*one) for one in json.loads(transport.read(_key(pair, sequence)))]
    return found


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


def _to_and_fro(transport: Transport, pair: Pair, num_bytes: int, sequence: int) -> Transfer:
    low, high = pair
    times_s = []
    for number in range(_NUM_FIRST + _NUM_ROUNDS):
        transport.post(high, _label(sequence, num_bytes, number, "fro"), contract_of(num_bytes))
        began_s = time.perf_counter()
        _send(transport, high, _label(sequence, num_bytes, number, "to"), num_bytes)
        transport.wait(high, _label(sequence, num_bytes, number, "fro"))
        times_s.append((time.perf_counter() - began_s) / 2)
    return Transfer(low, high, num_bytes, statistics.median(times_s[_NUM_FIRST:]))


def _answer(transport: Transport, pair: Pair, num_bytes: int, sequence: int) -> None:
    low, _ = pair
    for number in range(_NUM_FIRST + _NUM_ROUNDS):
        transport.post(low, _label(sequence, num_bytes, number, "to"), contract_of(num_bytes))
        transport.wait(low, _label(sequence, num_bytes, number, "to"))
        _send(transport, low, _label(sequence, num_bytes, number, "fro"), num_bytes)


def _send(transport: Transport, peer: int, label: Label, num_bytes: int) -> None:
    payload = (torch.empty(num_bytes, dtype=torch.uint8),)
    transport.send(peer, label, payload, contract_of(num_bytes))


def _all_sizes(sizes: Iterable[int]) -> list[int]:
    return sorted({0, *sizes})


def _label(sequence: int, num_bytes: int, number: int, way: str) -> Label:
    return Label(sequence, f"{way} {number} {num_bytes}")


def _key(pair: Pair, sequence: int) -> str:
    return f"transfers/{sequence}/{pair[0]}/{pair[1]}"
