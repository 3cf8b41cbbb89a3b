"""What a schedule runs on: ranks, the links between them, and the memory they have."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from intandem.ir.strict_json import as_list, as_number, as_object, as_whole, read_object

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Pair = tuple[int, int]
"""A directed pair of ranks: (sender, receiver)."""

_LINK_KEYS = ("latency_s", "bandwidth_bytes_per_s")
_JSON_KEYS = (
    *_LINK_KEYS,
    "links",
    "shared_wires",
    "transfers_overlap",
    "memory_bytes",
    "reduction_bytes_per_s",
)


@dataclass(frozen=True, slots=True)
class Link:
    """How messages go from one rank to another.

    Attributes:
        latency_s: seconds that any message takes at least. Messages may be under way at once for
            this part.
        bandwidth_bytes_per_s: infinite by default. A wire carries one message at a time for this
            part.

    Raises:
        ValueError: if the latency is negative or not finite, or the bandwidth not above 0.
    """

    latency_s: float = 0.0
    bandwidth_bytes_per_s: float = math.inf

    def __post_init__(self) -> None:
        if not (math.isfinite(self.latency_s) and self.latency_s >= 0):
            msg = f"latency_s is {self.latency_s}; expected a finite number, 0 or more"
            raise ValueError(msg)
        _require_bandwidth("bandwidth_bytes_per_s", self.bandwidth_bytes_per_s)


@dataclass(frozen=True, slots=True)
class Machine:
    """Ranks and what connects them.

    Two nodes of two ranks, with one slow uplink for each node::

        uplink = Link(latency_s=1e-5, bandwidth_bytes_per_s=12e9)
        between = [(0, 2), (0, 3), (1, 2), (1, 3)]
        Machine(
            num_ranks=4,
            link=Link(latency_s=5e-6, bandwidth_bytes_per_s=200e9),
            links={pair: uplink for a, b in between for pair in ((a, b), (b, a))},
            shared_wires=(tuple(between), tuple((b, a) for a, b in between)),
        )

    Attributes:
        num_ranks: ranks of the pipeline, at least 1.
        link: between any two ranks for which ``links`` has no other.
        links: of single directed pairs (sender, receiver).
        shared_wires: groups of directed pairs that share one wire, such as the uplink of a node:
            it carries one message at a time, first ready first served (of those ready at once,
            the one of the lower rank). A pair that is in no group has a wire of its own.
        transfers_overlap: whether ranks compute while their messages move. If not, a send holds
            its rank until the last byte has left, and a receive for the bandwidth part.
        memory_bytes: of each rank; empty for unlimited.
        reduction_bytes_per_s: at which a rank adds up gradients that other ranks hold as well.

    Raises:
        ValueError: if a number is out of range, or a pair is of no two ranks, or on two wires.
    """

    num_ranks: int
    link: Link = field(default_factory=Link)
    links: Mapping[Pair, Link] = field(default_factory=dict, hash=False)
    shared_wires: tuple[tuple[Pair, ...], ...] = ()
    transfers_overlap: bool = True
    memory_bytes: tuple[int, ...] = ()
    reduction_bytes_per_s: float = math.inf

    def __post_init__(self) -> None:
        if self.num_ranks < 1:
            msg = f"num_ranks is {self.num_ranks}; expected at least 1"
            raise ValueError(msg)
        object.__setattr__(self, "links", dict(self.links))
        _require_pairs("links", list(self.links), self.num_ranks)
        shared = [pair for wire in self.shared_wires for pair in wire]
        _require_pairs("shared_wires", shared, self.num_ranks)
        if len(self.memory_bytes) not in {0, self.num_ranks} or any(
            size < 0 for size in self.memory_bytes
        ):
            msg = f"memory_bytes is {self.memory_bytes}; expected {self.num_ranks} sizes or none"
            raise ValueError(msg)
        _require_bandwidth("reduction_bytes_per_s", self.reduction_bytes_per_s)

    @classmethod
    def uniform(
        cls, num_ranks: int, *, latency_s: float = 0.0, bandwidth_bytes_per_s: float = math.inf
    ) -> Machine:
        """Every pair has a link and a wire of its own, all alike; reductions are as fast."""
        link = Link(latency_s, bandwidth_bytes_per_s)
        return cls(num_ranks, link, reduction_bytes_per_s=bandwidth_bytes_per_s)

    def link_of(self, sender: int, receiver: int) -> Link:
        """How messages go from ``sender`` to ``receiver``."""
        return self.links.get((sender, receiver), self.link)


def machine_from_json(text: str, *, num_ranks: int) -> Machine:
    """Read a JSON object with the attributes of ``Machine``, and those of its ``link``.

    For example::

        {
            "latency_s": 5e-6,
            "bandwidth_bytes_per_s": 200e9,
            "links": [{"from": 0, "to": 1, "latency_s": 1e-5, "bandwidth_bytes_per_s": 12e9}],
            "shared_wires": [[[0, 2], [1, 2]]],
            "transfers_overlap": true,
            "memory_bytes": 80000000000
        }

    ``memory_bytes`` is a list, or one number that stands for every rank. What a link leaves out is
    as between any other ranks.

    Raises:
        ValueError: names the key that is unknown or has the wrong shape.
    """
    content = read_object(text, what="machine", known=_JSON_KEYS)
    link = _json_link(content, Link(), "machine")
    wires = as_list(content.get("shared_wires", []), what="machine: 'shared_wires'")
    return Machine(
        num_ranks,
        link,
        _json_links(content.get("links", []), link),
        tuple(
            tuple(
                _json_pair(pair, "shared_wires")
                for pair in as_list(wire, what="machine: 'shared_wires'")
            )
            for wire in wires
        ),
        transfers_overlap=_json_bool(content.get("transfers_overlap", True)),
        memory_bytes=_json_memory(content.get("memory_bytes", []), num_ranks),
        reduction_bytes_per_s=as_number(
            content.get("reduction_bytes_per_s", math.inf), what="machine: 'reduction_bytes_per_s'"
        ),
    )


def _json_link(content: Mapping[str, object], default: Link, what: str) -> Link:
    numbers = (
        as_number(content.get(key, getattr(default, key)), what=f"{what}: {key!r}")
        for key in _LINK_KEYS
    )
    return Link(*numbers)


def _json_links(value: object, default: Link) -> dict[Pair, Link]:
    what = "machine: 'links'"
    links: dict[Pair, Link] = {}
    for item in as_list(value, what=what):
        one = as_object(item, what=what, known=("from", "to", *_LINK_KEYS))
        pair = _json_pair([one.get("from"), one.get("to")], "links")
        if pair in links:
            msg = f"{what} has {pair} twice"
            raise ValueError(msg)
        links[pair] = _json_link(one, default, what)
    return links


def _json_pair(value: object, key: str) -> Pair:
    what = f"machine: {key!r}"
    pair = [as_whole(rank, what=what) for rank in as_list(value, what=what)]
    if len(pair) != 2:
        msg = f"{what} has {pair}; expected a pair of ranks"
        raise ValueError(msg)
    return pair[0], pair[1]


def _json_memory(value: object, num_ranks: int) -> tuple[int, ...]:
    sizes = value if isinstance(value, list) else [value] * num_ranks
    return tuple(as_whole(size, what="machine: 'memory_bytes'") for size in sizes)


def _json_bool(value: object) -> bool:
    if not isinstance(value, bool):
        msg = f"machine: 'transfers_overlap' has {value!r}; expected true or false"
        raise ValueError(msg)
    return value


def _require_pairs(key: str, pairs: Sequence[Pair], num_ranks: int) -> None:
    seen: set[Pair] = set()
    for pair in pairs:
        if len(set(pair)) != 2 or not all(0 <= rank < num_ranks for rank in pair):
            msg = f"{key} has the pair {pair}; expected two different ranks of 0..{num_ranks - 1}"
            raise ValueError(msg)
        if pair in seen:
            msg = f"{key} has the pair {pair} twice; expected it on one wire"
            raise ValueError(msg)
        seen.add(pair)


def _require_bandwidth(key: str, value: float) -> None:
    if not value > 0:
        msg = f"{key} is {value}; expected more than 0"
        raise ValueError(msg)
