"""Orders that come of giving every action a slot on a common clock, as Chimera and Hanayo do.

As if every action took one slot, a micro-batch goes through the L stages of a lap, one per slot,
and begins its next lap when all of its group have begun this one; after its last lap it comes back
in the same way. Micro-batches of a group enter every other slot.

[Note: laps tile the clock] Half of a rank's stages have their forwards in even slots and their
backwards in odd ones, the other half the opposite, as L is even. In either kind of slots, n laps of
g >= L/2 micro-batches take 2gn slots forwards, the way back takes the next 2gn, and the next group
follows without a gap. So no two actions share a slot, and a rank is never free from when both kinds
have begun until one of them ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from intandem.ir import Action, ActionKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from intandem.ir import Placement


class Entry(NamedTuple):
    """When a micro-batch enters the pipeline.

    Attributes:
        slot: of its first forward.
        lap_slots: slots from the start of one of its laps to the start of the next.
    """

    slot: int
    lap_slots: int


def entries_of(groups: Iterable[int], lap: int, num_laps: int) -> list[Entry]:
    """Return when each micro-batch enters.

    Args:
        groups: micro-batches of each group. Fewer than ``lap / 2`` leave slots free; see
            [Note: laps tile the clock].
        lap: stages of a lap, even.
        num_laps: laps of the pipeline.
    """
    entries: list[Entry] = []
    start = 0
    for size in groups:
        lap_slots = max(2 * size, lap)
        entries += (Entry(start + 2 * place, lap_slots) for place in range(size))
        start += 2 * num_laps * lap_slots
    return entries


def in_slot_order(
    placement: Placement, lap: int, entries: Sequence[Entry]
) -> tuple[tuple[Action, ...], ...]:
    """Return each rank's actions in the order of their slots. Takes linear time.

    Args:
        placement: of the pipeline and its replicas.
        lap: stages of a lap; they divide the pipeline.
        entries: of each micro-batch.
    """
    num_stages, num_microbatches = placement.num_stages, len(entries)
    num_laps = num_stages // lap
    num_slots = lap + max(entry.slot + 2 * num_laps * entry.lap_slots for entry in entries)
    grid: list[list[Action | None]] = [[None] * num_slots for _ in range(placement.num_ranks)]
    places = [divmod(stage, lap) for stage in range(num_stages)]
    for mb, (slot, lap_slots) in enumerate(entries):
        rank_of = placement.rows[placement.replica_of(mb, num_microbatches)]
        turn = slot + num_laps * lap_slots
        for stage, (num_done, place) in enumerate(places):
            down = slot + num_done * lap_slots + place
            grid[rank_of[stage]][down] = Action(stage, ActionKind.F, mb)
            mirrored = num_stages - 1 - stage
            up = turn + num_done * lap_slots + place
            grid[rank_of[mirrored]][up] = Action(mirrored, ActionKind.B, mb)
    return tuple(tuple(action for action in row if action is not None) for row in grid)
