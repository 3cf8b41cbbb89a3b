"""What the engine runs: every rank's order as small integers.

An **operation** waits for a message or for none, then holds its rank for some seconds, then hands
over a message or none. Its number is ``lane * count + index``, and all that is to say of it is said
once for its lane. The messages are numbered in the same way, so that from an operation to its
message it is one addition::

    compute order   1F3                          one operation: waits, holds, hands over
    program         recv:0F3>1@0  1F3  send:...  three of them

Lanes of messages between stages are called (source stage, target stage).

An action that overlaps with the next becomes three: wait for the message of the second; wait for
that of the first, hold the rank for both, hand over the first's; hand over the second's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Hashable


class Way(NamedTuple):
    """How a message travels.

    Attributes:
        link_s: seconds for which it keeps its wire to itself.
        latency_s: seconds that it takes besides.
        wire: number of the wire; None if no message ever waits for it.
        holds_sender: whether the sender stands still until it has left.
    """

    link_s: float
    latency_s: float
    wire: int | None
    holds_sender: bool


AT_ONCE = Way(0.0, 0.0, None, holds_sender=False)
"""Between two stages of one rank."""


@dataclass(slots=True)
class Operations:
    """The lanes, and what they share.

    Attributes:
        count: operations per lane.
        hold_s: of each lane, seconds that it holds its rank.
        takes: of each lane, how far from its own number the message is that it waits for.
        gives: of each lane, how far the message is that it hands over, and its way.
        num_wires: wires that messages may have to wait for.
        any_order: whether each wire has one sender only, so that a rank may be followed to where it
            waits before others are looked at.
    """

    count: int
    num_wires: int = 0
    any_order: bool = True
    hold_s: list[float] = field(default_factory=list)
    takes: list[int | None] = field(default_factory=list)
    gives: list[tuple[int, Way] | None] = field(default_factory=list)
    _lane_of: dict[Hashable, int] = field(default_factory=dict)
    _message_lane_of: dict[tuple[Hashable, ...], int] = field(default_factory=dict)

    def lane(
        self,
        key: Hashable,
        hold_s: float = 0.0,
        *,
        takes: tuple[Hashable, ...] | None = None,
        gives: tuple[Hashable, ...] | None = None,
        way: Way = AT_ONCE,
    ) -> int:
        """Return the lane known as ``key``; there is none yet the first time.

        Args:
            key: any name.
            hold_s: seconds that it holds its rank.
            takes: name of the lane of messages that it waits for, if it does.
            gives: name of the lane of messages that it hands over, if it does.
            way: how these travel.
        """
        if key in self._lane_of:
            return self._lane_of[key]
        lane = self._lane_of[key] = len(self.hold_s)
        self.hold_s.append(hold_s)
        self.takes.append(None if takes is None else self._distance(lane, takes))
        self.gives.append(None if gives is None else (self._distance(lane, gives), way))
        return lane

    def message_names(self) -> list[tuple[object, ...]]:
        """The names of the lanes of messages: a message's is at ``number // count``."""
        return list(self._message_lane_of)

    def _distance(self, lane: int, messages: tuple[Hashable, ...]) -> int:
        number = self._message_lane_of.setdefault(messages, len(self._message_lane_of))
        return (number - lane) * self.count
