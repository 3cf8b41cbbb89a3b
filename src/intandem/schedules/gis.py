"""Grouped interleaving (GIS): https://arxiv.org/abs/2503.01328, figure 5 bottom.

The interleaved schedule with two changes that cost no time: a backward is split, so that the rank
below gets its gradient before the weight gradient is made, and rank r starts its first backward
after (V - 1)P + P - r forwards instead of (V - 1)P + 2(P - r) - 1. Rank r holds V P - r stage
activations, where the interleaved schedule holds up to V P + P - 1, and the whole idles for
(P - 1)(F + I) instead of (P - 1)(F + I + W). For P=2, M=4, V=2::

    rank 0: 0F0 0F1 2F0 2F1 2I0 2W0 0F2 2I1 2W1 0F3 0I0 0W0 2F2 0I1 0W1 2F3 2I2 2W2 2I3 2W3 0I2 0W2 0I3 0W3
    rank 1: 1F0 1F1 3F0 3I0 3W0 3F1 3I1 3W1 1F2 1I0 1W0 1F3 1I1 1W1 3F2 3I2 3W2 3F3 3I3 3W3 1I2 1W2 1I3 1W3

With groups of g micro-batches, P/2 <= g <= P, rank r holds (V - 1)g + P - r and the whole idles for
(V - 1) max((P - g)F, P(F + I) - g(F + I + W)) more, as long as F <= I + W and I <= F + W: ``gis`` is
g = P, where that is nothing, ``gis-h`` the other end. Below P/2 ranks wait for one another for good.
"""  # noqa: E501  (a row is drawn on one line)

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from intandem.ir import ActionKind, Placement, Schedule
from intandem.schedules.alternation import alternate
from intandem.schedules.counts import require_counts, require_stages
from intandem.schedules.depth_first import DepthFirst, even_groups

if TYPE_CHECKING:
    from intandem.ir import Action


def gis(num_ranks: int, num_microbatches: int, stages_per_rank: int = 2) -> Schedule:
    """Build the GIS schedule: as few groups as there can be of at most P micro-batches.

    Args:
        num_ranks: P, at least 1.
        num_microbatches: M, at least 1; any number. The groups are of equal size, or differ by
            one micro-batch.
        stages_per_rank: V, at least 1.

    Raises:
        ValueError: if a count is less than 1.
    """
    require_counts(num_ranks, num_microbatches)
    require_stages(stages_per_rank)
    groups = even_groups(num_microbatches, -(-num_microbatches // num_ranks))
    return grouped("gis", DepthFirst(num_ranks, stages_per_rank, groups))


def grouped(name: str, order: DepthFirst) -> Schedule:
    """Build a grouped interleaved schedule, given the order in which ranks go through stages.

    Args:
        name: what to call it.
        order: groups of at least half as many micro-batches as there are ranks, larger first.
    """
    rows = tuple(_row(order, rank) for rank in range(order.num_ranks))
    placement = Placement.loop(order.num_ranks, order.stages_per_rank)
    return Schedule(name, placement, sum(order.groups), rows)


def _row(order: DepthFirst, rank: int) -> tuple[Action, ...]:
    """Return the order of ``rank``: each W directly after its I."""
    num_warmup = (order.stages_per_rank - 1) * order.groups[0] + order.num_ranks - rank
    halves = (order.backwards(rank, kind) for kind in (ActionKind.I, ActionKind.W))
    backwards: list[tuple[Action, ...]] = [*zip(*halves, strict=True)]
    forwards: list[tuple[Action, ...]] = [*zip(order.forwards(rank), strict=True)]
    return tuple(chain.from_iterable(alternate(forwards, backwards, num_warmup)))
