"""Data parallelism as a schedule: a pipeline and its replicas, each with its share of the batch.

For 1F1B on two ranks, twice, with M=4; neighbouring ranks hold the same stage::

    rank 0: 0F0 0F1 0B0 0B1
    rank 1: 0F2 0F3 0B2 0B3
    rank 2: 1F0 1B0 1F1 1B1
    rank 3: 1F2 1B2 1F3 1B3

A stage's gradients are added up over the ranks that hold it, once per step, as those of every
stage that is held several times.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

from intandem.errors import ScheduleError
from intandem.ir import Placement, Schedule

if TYPE_CHECKING:
    from collections.abc import Callable


def replicated(
    build: Callable[[int], Schedule], num_replicas: int, num_microbatches: int
) -> Schedule:
    """Build ``num_replicas`` copies of a schedule, which share out the micro-batches in order.

    Args:
        build: builds the schedule of one copy for a number of micro-batches.
        num_replicas: R, at least 1. Rank r of copy d is rank ``r * R + d`` of the whole.
        num_microbatches: M, of all copies together. Where there are fewer than copies, the last
            copies have nothing to do.

    Raises:
        ScheduleError: if copies of a schedule that holds stages several times itself do not share
            M evenly.
    """
    if num_replicas == 1:
        return build(num_microbatches)
    starts = [-(-copy * num_microbatches // num_replicas) for copy in range(num_replicas + 1)]
    counts = [end - start for start, end in pairwise(starts)]
    one = build(counts[0])
    copies = [build(count) if count else _idle(one) for count in counts]
    if one.placement.replicas and len(set(counts)) > 1:
        msg = (
            f"{num_replicas} replicas of {one.name} do not share {num_microbatches} micro-batches "
            f"evenly; use microbatches={num_replicas * max(counts)}"
        )
        raise ScheduleError(msg)
    moved = [_moved(copies[d], d, num_replicas, starts[d]) for d in range(num_replicas)]
    rows = [
        tuple(rank * num_replicas + d for rank in row)
        for d in range(num_replicas)
        for row in one.placement.rows
    ]
    return Schedule(
        name=f"{one.name}-x{num_replicas}",
        placement=Placement(rows[0], tuple(rows[1:])),
        num_microbatches=num_microbatches,
        actions=tuple(m.actions[rank] for rank in range(one.num_ranks) for m in moved),
        overlaps=frozenset().union(*(m.overlaps for m in moved)),
    )


def _idle(schedule: Schedule) -> Schedule:
    return replace(schedule, actions=((),) * schedule.num_ranks, overlaps=frozenset())


def _moved(schedule: Schedule, copy: int, num_replicas: int, first: int) -> Schedule:
    """Return a copy's orders for its own micro-batches, its overlaps on its own ranks."""
    rows = tuple(
        tuple(replace(a, microbatch=a.microbatch + first) for a in row) for row in schedule.actions
    )
    overlaps = frozenset((rank * num_replicas + copy, slot) for rank, slot in schedule.overlaps)
    return replace(schedule, actions=rows, overlaps=overlaps)
