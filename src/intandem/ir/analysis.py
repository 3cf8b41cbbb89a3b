"""What a timeline is asked for: where ranks were idle, and which actions its length comes from."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from intandem.ir.timeline import Span


@dataclass(frozen=True, slots=True)
class IdleParts:
    """Seconds in which a rank ran no action, by reason. They add up to all such seconds.

    A rank **waits** while it has nothing to do and what it is kept by is an action of another rank
    that runs. If all stages took equally long, messages took no time and nothing came in between,
    the same program would have waits too; so much of the waits is the **schedule's**.

    Attributes:
        fill_s: waits before the first backward, as far as they are the schedule's.
        drain_s: waits after the last forward, until no rank has actions left, as far as they are.
        order_s: waits between the two, as far as they are.
        imbalance_s: further waits that the program would have if only stages took as long as they
            do, each micro-batch the same.
        knock_on_s: all other waits: micro-batches that differ, and what transfers and overhead of
            other ranks shift.
        transfer_s: what it is kept by is computed, and has not arrived.
        overhead_s: what it is kept by is there, and has not begun.
        optimizer_s: the optimizer's update; once all ranks' actions are over, all until the last
            rank has updated.
    """

    fill_s: float = 0.0
    drain_s: float = 0.0
    order_s: float = 0.0
    imbalance_s: float = 0.0
    knock_on_s: float = 0.0
    transfer_s: float = 0.0
    overhead_s: float = 0.0
    optimizer_s: float = 0.0

    @property
    def total_s(self) -> float:
        """All of them."""
        return float(sum(astuple(self)))


class PathStep(NamedTuple):
    """An action of the critical path.

    Attributes:
        span: when and where it ran.
        by_message: whether it waited for a message of another rank, rather than for its own rank.
        gap_s: between the end of the action before it on the path and its start.
    """

    span: Span
    by_message: bool
    gap_s: float
