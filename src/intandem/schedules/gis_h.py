"""Grouped interleaving at half the memory (GIS-H): https://arxiv.org/abs/2503.01328, figure 6.

GIS with the smallest groups that there can be, g = P/2 micro-batches, rounded up: rank r holds
(V - 1)g + P - r stage activations, about half of what the interleaved schedule holds. It idles for
(V - 1) max((P - g)F, P(F + I) - g(F + I + W)) longer than GIS. For P=4, M=4, V=2::

    rank 0: 0F0 0F1 4F0 4F1 0F2 0F3 4I0 4W0 4F2 4I1 4W1 4F3 0I0 0W0 0I1 0W1 4I2 4W2 4I3 4W3 0I2 0W2 0I3 0W3
    rank 1: 1F0 1F1 5F0 5F1 1F2 5I0 5W0 1F3 5I1 5W1 5F2 1I0 1W0 5F3 1I1 1W1 5I2 5W2 5I3 5W3 1I2 1W2 1I3 1W3
    rank 2: 2F0 2F1 6F0 6F1 6I0 6W0 2F2 6I1 6W1 2F3 2I0 2W0 6F2 2I1 2W1 6F3 6I2 6W2 6I3 6W3 2I2 2W2 2I3 2W3
    rank 3: 3F0 3F1 7F0 7I0 7W0 7F1 7I1 7W1 3F2 3I0 3W0 3F3 3I1 3W1 7F2 7I2 7W2 7F3 7I3 7W3 3I2 3W2 3I3 3W3

Where g does not divide M, groups are of g micro-batches or a few more: smaller ones would deadlock.
"""  # noqa: E501  (a row is drawn on one line)

from __future__ import annotations

from typing import TYPE_CHECKING

from intandem.schedules.counts import require_counts, require_stages
from intandem.schedules.depth_first import DepthFirst, groups_of_at_least
from intandem.schedules.gis import grouped

if TYPE_CHECKING:
    from intandem.ir import Schedule


def gis_h(num_ranks: int, num_microbatches: int, stages_per_rank: int = 2) -> Schedule:
    """Build the GIS-H schedule.

    Args:
        num_ranks: P, at least 1.
        num_microbatches: M, at least 1; any number.
        stages_per_rank: V, at least 1.

    Raises:
        ValueError: if a count is less than 1.
    """
    require_counts(num_ranks, num_microbatches)
    require_stages(stages_per_rank)
    groups = groups_of_at_least((num_ranks + 1) // 2, num_microbatches)
    return grouped("gis-h", DepthFirst(num_ranks, stages_per_rank, groups))
