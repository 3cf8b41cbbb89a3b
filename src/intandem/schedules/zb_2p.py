"""ZB-2p: https://arxiv.org/abs/2401.10241, section 3 (automatic schedule).

The heuristic of ``zb_auto`` for given costs with room for 2P activations on every rank. With
equal times and M >= 2P, it is as long as ZB-H2. For P=3, M=6::

    rank 0: 0F0 0F1 0F2 0F3 0F4 0I0 0F5 0W0 0I1 0W1 0I2 0W2 0I3 0W3 0I4 0W4 0I5 0W5
    rank 1: 1F0 1F1 1F2 1I0 1F3 1I1 1F4 1I2 1F5 1I3 1W0 1I4 1W1 1I5 1W2 1W3 1W4 1W5
    rank 2: 2F0 2I0 2F1 2I1 2F2 2I2 2F3 2I3 2F4 2I4 2F5 2I5 2W0 2W1 2W2 2W3 2W4 2W5
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intandem.schedules.zb_auto import zb_auto

if TYPE_CHECKING:
    from intandem.costs import CostModel
    from intandem.ir import Schedule


def zb_2p(
    num_ranks: int,
    num_microbatches: int,
    *,
    costs: CostModel | None = None,
    max_activations: float | None = None,
) -> Schedule:
    """Build the ZB-2p schedule, one stage per rank.

    Args:
        num_ranks: P, at least 1.
        num_microbatches: M, at least 1.
        costs: of P stages; by default, every action takes one second and no transfer any. With
            bytes of activations, memory counts in bytes: what I frees is free.
        max_activations: what every rank may hold, 2P by default, in activations of its stage.

    Raises:
        ScheduleError: if it does not fit the room.
        ValueError: if a count is less than 1, or ``costs`` are of another number of stages.
    """
    room = 2 * num_ranks if max_activations is None else max_activations
    return zb_auto("zb-2p", num_ranks, num_microbatches, costs=costs, max_activations=room)
