"""From the best of a search to what is returned: a schedule, its figures, and how good it is."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from intandem.errors import ScheduleError
from intandem.ir import Action, ActionKind, Schedule
from intandem.lowering import lower
from intandem.planner.builtin import peaks
from intandem.planner.found import Found
from intandem.simulator import Allowed, lower_bound_s, simulate

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from intandem.costs import CostModel
    from intandem.ir import Timeline
    from intandem.planner.improvement import Improvement
    from intandem.planner.request import Request

_ROUNDING = 1e-9
"""Relative difference that adding up in another order makes."""


def finished(request: Request, improvement: Improvement) -> Found:
    """Return the best of ``improvement`` with its figures, all from ``simulate``."""
    best = improvement.best
    if best is None:
        msg = "nothing was found; expected at least one schedule"
        raise ScheduleError(msg)
    schedule = best.build()
    timeline = _simulated(schedule, request.costs, best.recompute)
    if request.split_backward is None:
        schedule, timeline = _joined(schedule, timeline, request, best.recompute)
    bound_s = improvement.bound_s
    if schedule.placement not in request.placements:
        bound_s = min(bound_s, _bound_elsewhere_s(schedule, request))
    found = Found(
        schedule,
        request.objective,
        timeline.makespan_s,
        timeline.rank_span_s,
        peaks(schedule, replace(request, cap=None, cap_bytes=None).memory()),
        _peak_held_bytes(schedule, request, best.recompute),
        bound_s,
        proven=False,
        method=best.method,
        recompute=best.recompute,
    )
    proven = found.value_s <= bound_s * (1 + _ROUNDING)
    return replace(found, proven=proven)


def _bound_elsewhere_s(schedule: Schedule, request: Request) -> float:
    """Bound for a built-in schedule on a placement that is not searched."""
    allowed = Allowed(request.objective, None, None, request.split_backward)
    count = request.num_microbatches
    return lower_bound_s(request.costs, schedule.placement, count, allowed)


def _simulated(schedule: Schedule, costs: CostModel, recompute: frozenset[int]) -> Timeline:
    return simulate(lower(schedule, recompute=recompute) if recompute else schedule, costs)


def _joined(
    schedule: Schedule, timeline: Timeline, request: Request, recompute: frozenset[int]
) -> tuple[Schedule, Timeline]:
    """Join an I and the W that follows it into a B, where that makes nothing longer.

    One backward is cheaper than two halves in ways that no cost model has.
    """
    costs = request.costs
    cheap = {
        s
        for s in range(costs.num_stages)
        if costs.backward_s[s]
        <= (costs.backward_input_s[s] + costs.backward_weight_s[s]) * (1 + _ROUNDING)
    }
    for stages in (cheap, cheap & {0}):
        joined = _with_whole_backwards(schedule, stages)
        if joined == schedule:
            continue
        again = _simulated(joined, costs, recompute)
        longer_s = again.makespan_s - timeline.makespan_s
        rank_longer_s = again.rank_span_s - timeline.rank_span_s
        if max(longer_s, rank_longer_s) <= _ROUNDING * timeline.makespan_s:
            return joined, again
    return schedule, timeline


def _with_whole_backwards(schedule: Schedule, stages: Container[int]) -> Schedule:
    if schedule.overlaps:
        return schedule
    rows = tuple(_joined_row(row, stages) for row in schedule.actions)
    return replace(schedule, actions=rows)


def _joined_row(row: Sequence[Action], stages: Container[int]) -> tuple[Action, ...]:
    out: list[Action] = []
    for action in row:
        stage, mb = action.stage, action.microbatch
        first = action.kind is ActionKind.W and stage in stages
        if first and out and out[-1] == Action(stage, ActionKind.I, mb):
            out[-1] = Action(stage, ActionKind.B, mb)
        else:
            out.append(action)
    return tuple(out)


def _peak_held_bytes(
    schedule: Schedule, request: Request, recompute: frozenset[int]
) -> tuple[int, ...] | None:
    if not request.costs.activation_bytes:
        return None
    in_bytes = replace(request, cap=None, cap_bytes=1)
    return peaks(schedule, in_bytes.memory(recompute))
