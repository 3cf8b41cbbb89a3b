"""What an action needs: the one definition that lowering, rules and simulator share."""

from __future__ import annotations

from intandem.ir.action import Action, ActionKind


def predecessors(action: Action, *, num_stages: int) -> tuple[tuple[Action, ...], ...]:
    """Return what must finish before ``action`` starts.

    Each inner tuple is a set of alternatives: at least one of them must be done. A
    backward needs the next stage's backward, which is either B or I.

    Args:
        action: the action asked about.
        num_stages: length of the pipeline.
    """
    stage, mb = action.stage, action.microbatch
    own_forward = (Action(stage, ActionKind.F, mb),)
    match action.kind:
        case ActionKind.F:
            return () if stage == 0 else ((Action(stage - 1, ActionKind.F, mb),),)
        case ActionKind.B | ActionKind.I:
            if stage == num_stages - 1:
                return (own_forward,)
            above = stage + 1
            upstream = (Action(above, ActionKind.B, mb), Action(above, ActionKind.I, mb))
            return (own_forward, upstream)
        case ActionKind.W:
            return ((Action(stage, ActionKind.I, mb),),)
