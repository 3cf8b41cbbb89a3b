"""How long a stage keeps what its backward needs: the one definition of "in flight"."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intandem.ir.action import Action, ActionKind

if TYPE_CHECKING:
    from collections.abc import Iterable

ACTIVATIONS_TAKEN = {ActionKind.F: 1, ActionKind.B: 0, ActionKind.I: 0, ActionKind.W: 0}
"""Stage activations that an action takes when it starts."""

ACTIVATIONS_FREED = {ActionKind.F: 0, ActionKind.B: 1, ActionKind.I: 0, ActionKind.W: 1}
"""Stage activations that an action frees when it ends: I keeps what W needs."""


def held_activations(actions: Iterable[Action]) -> list[int]:
    """Stage activations that a rank holds while it runs each of ``actions`` in order.

    Where there are no backwards, a forward keeps nothing when it has ended.
    """
    held = 0
    counts = []
    row = list(actions)
    if all(action.kind is ActionKind.F for action in row):
        return [1] * len(row)
    for action in row:
        held += ACTIVATIONS_TAKEN[action.kind]
        counts.append(held)
        held -= ACTIVATIONS_FREED[action.kind]
    return counts
