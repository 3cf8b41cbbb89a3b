"""What a rank of DualPipe does, whichever way its second stream comes: once around a V, or up.

Two streams of micro-batches meet on a rank: 0 enters at the stage nearer to the start of the
pipeline, 1 at the one nearer to its end. Once both flow, the forward of each overlaps with the
backward of the other.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from intandem.ir import Action, ActionKind, Schedule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intandem.ir import Placement

F, B, I, W = ActionKind  # noqa: E741  (the field's letters)


@dataclass(frozen=True, slots=True)
class Stream:
    """Micro-batches that pass through one stage of a rank.

    Attributes:
        stage: the stage.
        first: the first micro-batch; the others follow it in order.
        num_microbatches: how many there are.
    """

    stage: int
    first: int
    num_microbatches: int


@dataclass(slots=True)
class FoldedRow:
    """The order of one rank, written down from left to right.

    A stream may have fewer micro-batches than the order provides for: what is asked of the missing
    ones is left out. That leaves every other action with what it needs.

    Attributes:
        streams: streams 0 and 1.
        actions: the order so far.
        overlaps: slots of forwards that overlap with what follows them.
    """

    streams: tuple[Stream, Stream]
    actions: list[Action] = field(default_factory=list, init=False)
    overlaps: list[int] = field(default_factory=list, init=False)
    _num_done: Counter[tuple[int, ActionKind]] = field(default_factory=Counter, init=False)
    _without_w: deque[Action | None] = field(default_factory=deque, init=False)

    def forward(self, stream: int) -> None:
        """F of the stream's next micro-batch."""
        self._append(self._next(stream, F))

    def backward(self, stream: int) -> None:
        """B of the stream's next micro-batch."""
        self._append(self._next(stream, B))

    def backward_input(self, stream: int) -> None:
        """I of the stream's next micro-batch; its W is put off."""
        action = self._next(stream, B)
        split = None if action is None else Action(action.stage, I, action.microbatch)
        self._append(split)
        self._without_w.append(split)

    def backward_weight(self) -> None:
        """W of the I that has waited longest."""
        action = self._without_w.popleft()
        if action is not None:
            self._append(Action(action.stage, W, action.microbatch))

    def together(self, forward: int, backward: int) -> None:
        """F of one stream and B of the other, overlapping."""
        first, second = self._next(forward, F), self._next(backward, B)
        if first is not None and second is not None:
            self.overlaps.append(len(self.actions))
        self._append(first)
        self._append(second)

    def _next(self, stream: int, kind: ActionKind) -> Action | None:
        place = self._num_done[stream, kind]
        self._num_done[stream, kind] += 1
        source = self.streams[stream]
        if place >= source.num_microbatches:
            return None
        return Action(source.stage, kind, source.first + place)

    def _append(self, action: Action | None) -> None:
        if action is not None:
            self.actions.append(action)


def folded_row(streams: tuple[Stream, Stream], place: int, num_places: int) -> FoldedRow:
    """Write down the order of one rank. Takes linear time.

    Args:
        streams: what passes through the rank.
        place: ranks between this one and the nearer end of the pipeline.
        num_places: ranks from there to the turn, or to the middle.
    """
    row = FoldedRow(streams)
    num_after = num_places - place - 1
    num_least = max(stream.num_microbatches for stream in streams)
    num_steady = max(num_least, 2 * num_places) - 2 * num_places + place + 1
    for _ in range(2 * num_after):
        row.forward(0)
    for _ in range(place + 1):
        row.forward(0)
        row.forward(1)
    for _ in range(num_after):
        row.backward_input(1)
        row.backward_weight()
        row.forward(1)
    if num_after:
        row.together(0, 1)
    else:  # on the last rank before the turn, the first pair does not overlap
        row.forward(0)
        row.backward(1)
    row.together(1, 0)
    for _ in range(num_steady - 1):
        row.together(0, 1)
        row.together(1, 0)
    for _ in range(num_after):
        row.backward(1)
        row.together(1, 0)
    _drain(row, place, num_after)
    return row


def folded_schedule(
    name: str, placement: Placement, num_microbatches: int, rows: Sequence[FoldedRow]
) -> Schedule:
    """Return the rows of all ranks as a schedule."""
    actions = tuple(tuple(row.actions) for row in rows)
    overlaps = frozenset((rank, slot) for rank, row in enumerate(rows) for slot in row.overlaps)
    return Schedule(name, placement, num_microbatches, actions, overlaps)


def _drain(row: FoldedRow, place: int, num_after: int) -> None:
    """The last backwards. From the middle of the pairs on, they are split and W is put off."""
    num_pairs = place + 1
    for backward in range(2 * num_pairs):
        stream = 1 - backward % 2
        if backward < num_pairs:
            row.backward(stream)
        else:
            row.backward_input(stream)
    for _ in range(num_after):
        row.backward_weight()
        row.backward_input(0)
    for _ in range(num_pairs):
        row.backward_weight()
