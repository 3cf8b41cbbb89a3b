"""Whether a schedule forwards every micro-batch before the first backward, on the last stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intandem.ir import ActionKind

if TYPE_CHECKING:
    from intandem.ir import Action, Schedule


def early_backward(schedule: Schedule) -> tuple[Action, Action] | None:
    """Return the first backward of the last stage and a later forward; None if there are none.

    A loss of the whole batch needs every output before it has a gradient for any.
    """
    last = schedule.num_stages - 1
    row = schedule.actions[schedule.placement.rank_of[last]]
    own = [action for action in row if action.stage == last]
    first = next((i for i, action in enumerate(own) if action.kind is not ActionKind.F), len(own))
    later = [action for action in own[first:] if action.kind is ActionKind.F]
    return (own[first], later[0]) if later else None
