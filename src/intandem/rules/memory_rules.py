"""Rules on what a rank holds. Pure: no torch, no process group.

M001  a rank holds more stage activations than the cap
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intandem.errors import Diagnostic
from intandem.ir import Compute, Program, Schedule
from intandem.ir.residency import held_activations

if TYPE_CHECKING:
    from collections.abc import Iterator

    from intandem.ir import Action


def check_memory(order: Schedule | Program, cap: int) -> tuple[Diagnostic, ...]:
    """Return one finding per rank that holds more than ``cap`` stage activations.

    A stage activation is held from its F until its B, or its W, has ended.

    Raises:
        ValueError: if ``cap`` is less than 1.
    """
    if cap < 1:
        msg = f"the cap is {cap} stage activations; expected at least 1"
        raise ValueError(msg)
    return tuple(_over(order, cap))


def _over(order: Schedule | Program, cap: int) -> Iterator[Diagnostic]:
    for rank in range(order.num_ranks):
        slots, actions = _computes(order, rank)
        held = held_activations(actions)
        if (peak := max(held, default=0)) > cap:
            first = next(index for index, count in enumerate(held) if count > cap)
            what = f"{actions[first]} makes {held[first]} stage activations held"
            message = f"{what}, {peak} at the peak; the cap is {cap}"
            yield Diagnostic("M001", rank, slots[first], message)


def _computes(order: Schedule | Program, rank: int) -> tuple[list[int], list[Action]]:
    if isinstance(order, Schedule):
        row = order.actions[rank]
        return list(range(len(row))), list(row)
    found = [
        (slot, i.action)
        for slot, i in enumerate(order.instructions[rank])
        if isinstance(i, Compute)
    ]
    return [slot for slot, _ in found], [action for _, action in found]
