"""What no schedule can be faster than.

Per rank, a one-machine relaxation: the rank cannot start before micro-batch 0 has come down to
it (head), it has its own work to do, and after its last action the rest of the way back up is
still to go (tail). A W has no tail, so the work bound is the larger of two:

    head + M (F + B)                 everything this rank does, with no tail
    head + M (F + I) + tail          without the W's; then the way up from this rank

with B at least min(B, I + W) and I at least min(B, I): every backward may be split or not.
For equal stages, one per rank, the first is (P-1)(F+c) + M (F+I+W) and the second is
(P-1)(F+I+2c) + M (F+I) + W: the work and chain bounds of the zero-bubble papers.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from intandem.ir import Action, ActionKind, Message

if TYPE_CHECKING:
    from intandem.costs import CostModel
    from intandem.ir import Placement


def lower_bound_s(costs: CostModel, placement: Placement, num_microbatches: int) -> float:
    """Return seconds that every schedule of a chain of stages takes at least.

    It bounds ``makespan_s``, not ``rank_span_s``, whatever the order, the memory, and whether
    backwards are split.

    Args:
        costs: of as many stages as ``placement`` has.
        placement: stage to rank.
        num_microbatches: M, at least 1.

    Raises:
        ValueError: if the numbers of stages differ, or there is no micro-batch.
    """
    if costs.num_stages != placement.num_stages or num_microbatches < 1:
        got = f"{costs.num_stages} stages costed, {placement.num_stages} placed"
        msg = f"{got}, {num_microbatches=}; expected as many stages and a micro-batch"
        raise ValueError(msg)
    heads_s, tails_s = _heads_s(costs, placement), _tails_s(costs, placement)
    whole_s, without_w_s = _whole_s(costs), _without_w_s(costs)
    bound_s = 0.0
    for rank in set(placement.rank_of):
        stages = placement.stages_of(rank)
        head_s, tail_s = min(heads_s[s] for s in stages), min(tails_s[s] for s in stages)
        all_s = num_microbatches * sum(costs.forward_s[s] + whole_s[s] for s in stages)
        urgent_s = num_microbatches * sum(costs.forward_s[s] + without_w_s[s] for s in stages)
        bound_s = max(bound_s, head_s + all_s, head_s + urgent_s + tail_s)
    return bound_s


def _whole_s(costs: CostModel) -> list[float]:
    """Per stage, the least that a whole backward takes."""
    halves = zip(costs.backward_input_s, costs.backward_weight_s, strict=True)
    return [min(b, i + w) for b, (i, w) in zip(costs.backward_s, halves, strict=True)]


def _without_w_s(costs: CostModel) -> list[float]:
    """Per stage, the least until the stage before can go on."""
    return list(map(min, costs.backward_s, costs.backward_input_s))


def _heads_s(costs: CostModel, placement: Placement) -> list[float]:
    """Per stage, seconds until its first forward can start."""
    hops = (
        costs.forward_s[s] + _hop_s(costs, placement, ActionKind.F, s, s + 1)
        for s in range(costs.num_stages - 1)
    )
    return list(accumulate(hops, initial=0.0))


def _tails_s(costs: CostModel, placement: Placement) -> list[float]:
    """Per stage, seconds from the end of its last I or B to the end of all."""
    urgent_s = [*_without_w_s(costs)]
    urgent_s[0] = _whole_s(costs)[0]
    hops = (
        _hop_s(costs, placement, ActionKind.I, s + 1, s) + urgent_s[s]
        for s in range(costs.num_stages - 1)
    )
    return list(accumulate(hops, initial=0.0))


def _hop_s(
    costs: CostModel, placement: Placement, kind: ActionKind, source: int, target: int
) -> float:
    if placement.rank_of[source] == placement.rank_of[target]:
        return 0.0
    return costs.transfer_s(Message(Action(source, kind, 0), target))
