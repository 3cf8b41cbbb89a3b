"""Building blocks of V schedules: https://arxiv.org/abs/2405.15362, section 3 and appendix A.

Two stages per rank in a V. A block says in which slots every rank does the passes of micro-batch 0
if each takes one slot; micro-batch k does the same ``interval`` slots per micro-batch later. On
every rank, no two passes may then fall on the same slot; W's take the slots that are left. How
long a rank holds activations, by the interval, is what it holds in the steady state: blocks that
go down slowly hold more, and leave less of warm-up and cool-down empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, count, product
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from intandem.schedules.setting import Room

PASS_SLOTS = 6
"""Passes per micro-batch and rank: the shortest interval, in which no slot is left empty."""


class Passes(NamedTuple):
    """Slots of micro-batch 0 on one rank: F's and I's of its stages down and up."""

    f_down: int
    f_up: int
    i_up: int
    i_down: int


@dataclass(frozen=True, slots=True)
class Block:
    """Slots of micro-batch 0, per rank.

    Attributes:
        interval: slots between a pass and the same pass of the next micro-batch.
        passes: per rank.
        held: per rank, stage activations (down, up) that it holds in each slot of an interval.
    """

    interval: int
    passes: tuple[Passes, ...]
    held: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def peak(self) -> int:
        """Stage activations that the fullest rank holds in the steady state."""
        return max(down + up for slots in self.held for down, up in slots)

    def fits(self, room: Room) -> bool:
        """Whether no rank ever holds more than its cap in the steady state."""
        return all(need <= cap for need, cap in zip(self.needs(room), room.cap, strict=True))

    def needs(self, room: Room) -> tuple[float, ...]:
        """Return the most that each rank holds in the steady state, in the unit of ``room``."""
        sizes = list(map(max, room.activation, room.pending))
        return tuple(
            max(down * sizes[rank] + up * sizes[-1 - rank] for down, up in slots)
            for rank, slots in enumerate(self.held)
        )


def v_min_block(num_ranks: int) -> Block:
    """Return the block of V-Min: every pass goes on at once."""
    gap = 3 if num_ranks % 3 == 0 else 1
    return _known_block([1] * (num_ranks - 1), (1, gap, 1))


def v_half_block(num_ranks: int) -> Block:
    """Return the block of V-Half: passes on their way down go on after a slot."""
    gap = 4 if num_ranks % 2 == 0 else 1
    return _known_block([2] * (num_ranks - 1), (1, gap, 2))


def fitting_blocks(num_ranks: int, room: Room) -> list[Block]:
    """Return blocks that keep within ``room``, those that fill it best first.

    Passes go up one slot per rank; down, ``first`` slots for some ranks and fewer for the rest.
    If no block of the shortest interval fits, the shortest interval that has some is taken; there
    is none if two stage activations do not fit.
    """
    for interval in count(PASS_SLOTS):
        found = [block for block in _blocks(num_ranks, interval) if block.fits(room)]
        if found or interval > 4 * num_ranks + PASS_SLOTS:
            return sorted(found, key=lambda block: (-block.peak, block.passes))
    return []  # pragma: no cover


def _blocks(num_ranks: int, interval: int) -> Iterator[Block]:
    num_hops = num_ranks - 1
    most = PASS_SLOTS - 1 if interval == PASS_SLOTS else 1
    stride = -(-num_hops // 8)
    for first in range(1, most + 1):
        ways = {(first,) * num_hops}
        for rest, cut in product(range(1, first), range(1, num_hops, stride) if num_hops else ()):
            ways.add((first,) * cut + (rest,) * (num_hops - cut))
        for hops, turns in product(sorted(ways), product(range(1, PASS_SLOTS + 1), repeat=3)):
            if (block := _block(hops, turns, interval)) is not None:
                yield block


def _known_block(hops: Sequence[int], turns: Sequence[int]) -> Block:
    block = _block(hops, turns, PASS_SLOTS)
    if block is None:
        msg = f"passes of {hops=}, {turns=} meet"
        raise ValueError(msg)
    return block


def _block(hops: Sequence[int], turns: Sequence[int], interval: int) -> Block | None:
    """Return the block of passes that take ``hops`` down and one slot per rank up, or None.

    ``turns`` are the slots from the last F down to the first one up, from the last F to the first
    I on rank 0, and from the last I of a stage up to the first of a stage down.
    """
    num_ranks = len(hops) + 1
    down = list(accumulate(hops, initial=0))
    top = down[-1] + turns[0] + num_ranks - 1
    home = top + turns[1] + down[-1] + turns[2] + num_ranks - 1
    passes, held = [], []
    for rank, slot in enumerate(down):
        row = Passes(slot, top - rank, top + turns[1] + slot, home - rank)
        if len({slot % interval for slot in row}) < len(row):
            return None
        passes.append(row)
        held.append(_held(row, interval))
    return Block(interval, tuple(passes), tuple(held))


def _held(row: Passes, interval: int) -> tuple[tuple[int, int], ...]:
    """Return activations (down, up) in each slot, with W's in the first slots left over."""
    taken = {slot % interval for slot in row}
    ends = []
    for slot in (row.i_up, row.i_down):
        end = next(s for s in count(slot + 1) if s % interval not in taken)
        taken.add(end % interval)
        ends.append(end)
    spans = ((row.f_down, ends[1]), (row.f_up, ends[0]))
    slots = range(interval)
    down, up = ([(s - f) // interval - (s - w - 1) // interval for s in slots] for f, w in spans)
    return tuple(zip(down, up, strict=True))
