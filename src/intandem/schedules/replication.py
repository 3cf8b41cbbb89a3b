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
    from collections.abc import Callable, Sequence


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
        ScheduleError: as ``build``; or if copies of a schedule that holds stages several times
            itself cannot share M.
    """
    if num_replicas == 1:
        return build(num_microbatches)
    starts = [-(-copy * num_microbatches // num_replicas) for copy in range(num_replicas + 1)]
    one = build(starts[1])
    num_within = one.placement.num_replicas
    num_all = num_replicas * num_within
    replica_of = [mb * num_all // num_microbatches for mb in range(num_microbatches)]
    copies = []
    for copy, (start, end) in enumerate(pairwise(starts)):
        share = [replica - copy * num_within for replica in replica_of[start:end]]
        made = _shared_as(build(len(share)), share) if share else _idle(one)
        copies.append(_moved(made, copy, num_replicas, start))
    rows = [
        tuple(rank * num_replicas + copy for rank in row)
        for copy, made in enumerate(copies)
        for row in made.placement.rows
    ]
    return Schedule(
        name=f"{one.name}-x{num_replicas}",
        placement=Placement(rows[0], tuple(rows[1:])),
        num_microbatches=num_microbatches,
        actions=tuple(made.actions[rank] for rank in range(one.num_ranks) for made in copies),
        overlaps=frozenset().union(*(made.overlaps for made in copies)),
    )


def _idle(schedule: Schedule) -> Schedule:
    return replace(schedule, actions=((),) * schedule.num_ranks, overlaps=frozenset())


def _shared_as(schedule: Schedule, share: Sequence[int]) -> Schedule:
    """Return ``schedule`` with its own replicas in the order in which they take ``share``.

    Args:
        schedule: for as many micro-batches.
        share: per micro-batch of this copy, which of the replicas of ``schedule`` is to take it.
            Of an odd number, the one more may be the first replica's or the last's.

    Raises:
        ScheduleError: if neither order gives that share.
    """
    placement, count = schedule.placement, len(share)
    own = [placement.replica_of(mb, count) for mb in range(count)]
    replicas = range(placement.num_replicas)
    for order in (list(replicas), list(reversed(replicas))):
        dealt = sorted(range(count), key=lambda mb: order.index(own[mb]))
        if [order.index(own[mb]) for mb in dealt] == list(share):
            number_of = {mb: number for number, mb in enumerate(dealt)}
            first, *others = (placement.rows[replica] for replica in order)
            rows = tuple(
                tuple(replace(a, microbatch=number_of[a.microbatch]) for a in row)
                for row in schedule.actions
            )
            return replace(schedule, placement=Placement(first, tuple(others)), actions=rows)
    msg = (
        f"replicas of {schedule.name} cannot share {count} micro-batches as {list(share)}; use "
        f"a multiple of {placement.num_replicas} for each replica"
    )
    raise ScheduleError(msg)


def _moved(schedule: Schedule, copy: int, num_replicas: int, first: int) -> Schedule:
    """Return a copy's orders for its own micro-batches, its overlaps on its own ranks."""
    rows = tuple(
        tuple(replace(a, microbatch=a.microbatch + first) for a in row) for row in schedule.actions
    )
    overlaps = frozenset((rank * num_replicas + copy, slot) for rank, slot in schedule.overlaps)
    return replace(schedule, actions=rows, overlaps=overlaps)
