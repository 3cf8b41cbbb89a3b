"""One rank's order with one stage and split backwards: what ZB-H1 and ZB-H2 have in common."""

from __future__ import annotations

from intandem.ir import Action, ActionKind


def split_order(
    rank: int, num_microbatches: int, *, num_warmup: int, delay: int
) -> tuple[Action, ...]:
    """Return the order of ``rank``: warm-up, then I, W and F in turn, then the W's left over.

    Args:
        rank: which is also its stage.
        num_microbatches: M.
        num_warmup: F's before the first I.
        delay: the W of micro-batch b comes after the I of micro-batch b + delay.
    """
    forwards = [Action(rank, ActionKind.F, mb) for mb in range(num_microbatches)]
    weights = [Action(rank, ActionKind.W, mb) for mb in range(num_microbatches)]
    order = forwards[:num_warmup]
    for mb in range(num_microbatches):
        order.append(Action(rank, ActionKind.I, mb))
        if mb >= delay:
            order.append(weights[mb - delay])
        order += forwards[num_warmup + mb : num_warmup + mb + 1]
    return (*order, *weights[max(num_microbatches - delay, 0) :])
