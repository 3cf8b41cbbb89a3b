"""Orders that come of giving every action a slot on a common clock.

A micro-batch that enters the pipeline of S stages at slot t has its forward of stage s in slot
t + s and its backward in slot t + 2S - 1 - s, as if each took one slot. Chimera and Hanayo are made
so that no two actions of a rank ever share a slot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intandem.ir import Action, ActionKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intandem.ir import Placement


def in_slot_order(placement: Placement, entries: Sequence[int]) -> tuple[tuple[Action, ...], ...]:
    """Return each rank's actions in the order of their slots. Takes linear time.

    Args:
        placement: of the pipeline, or of its replicas.
        entries: per micro-batch, the slot in which it enters; such that no two actions of a rank
            share a slot.
    """
    depth, num_microbatches = placement.num_stages, len(entries)
    num_slots = max(entries) + 2 * depth
    grid: list[list[Action | None]] = [[None] * num_slots for _ in range(placement.num_ranks)]
    for mb, entry in enumerate(entries):
        rank_of = placement.rows[placement.replica_of(mb, num_microbatches)]
        for stage, rank in enumerate(rank_of):
            grid[rank][entry + stage] = Action(stage, ActionKind.F, mb)
            grid[rank][entry + 2 * depth - 1 - stage] = Action(stage, ActionKind.B, mb)
    return tuple(tuple(action for action in row if action is not None) for row in grid)


def entry_slots(num_microbatches: int, unit: int, unit_slots: int) -> list[int]:
    """Return the slots in which micro-batches enter: every other slot, and units one by one.

    Args:
        num_microbatches: how many enter.
        unit: how many make a unit.
        unit_slots: slots from the start of one unit to the start of the next.
    """
    return [mb // unit * unit_slots + mb % unit * 2 for mb in range(num_microbatches)]
