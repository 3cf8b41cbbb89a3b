"""Schedules that people know by name, as starting points and as what must not be beaten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from intandem.errors import ScheduleError
from intandem.ir import Action, ActionKind, Schedule
from intandem.planner.pattern import numbered
from intandem.schedules.registry import FAMILIES, Family, build_schedule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from intandem.costs import CostModel
    from intandem.planner.problem import Memory, Problem, Rows


_SAME_IN_A_CAP = {"zb-2p"}
"""Families that are others (zb-1p) with a larger cap of their own."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What built-in schedules are asked for.

    Attributes:
        costs: of all stages.
        num_ranks: P.
        num_microbatches: M.
        max_activations: for schedules that are made for a cap, each to be tried: of the mean size
            of a rank's stages, where the costs give sizes. None for their own.
    """

    costs: CostModel
    num_ranks: int
    num_microbatches: int
    max_activations: tuple[float, ...] | None


def builtin_schedules(wanted: Wanted) -> Iterator[Schedule]:
    """Yield every built-in schedule of that many stages; families that refuse are left out.

    Of families that are the same under the cap that is wanted, one is built.

    A family refuses counts with a ``ScheduleError``. Anything else that it raises is its fault.
    """
    stages_per_rank, rest = divmod(wanted.costs.num_stages, wanted.num_ranks)
    for family in FAMILIES:
        if wanted.max_activations is not None and family.name in _SAME_IN_A_CAP:
            continue
        if not _takes_costs(family, wanted):
            continue
        options: list[dict[str, Any]] = [{}]
        if "stages_per_rank" in family.takes:
            if rest:
                continue
            options = [{"stages_per_rank": stages_per_rank}]
        if "max_activations" in family.takes and wanted.max_activations is not None:
            options = [{**options[0], "max_activations": most} for most in wanted.max_activations]
        costs = {"costs": wanted.costs} if "costs" in family.takes else {}
        for option in options:
            try:
                schedule = family.build(
                    wanted.num_ranks, wanted.num_microbatches, **option, **costs
                )
            except ScheduleError:
                continue
            if schedule.num_stages == wanted.costs.num_stages and not schedule.is_forward_only:
                yield schedule


def _takes_costs(family: Family, wanted: Wanted) -> bool:
    """Whether ``family`` takes costs of so many stages; if it takes none, any number will do."""
    if "costs" not in family.takes:
        return True
    sketch = build_schedule(family.name, num_ranks=wanted.num_ranks, num_microbatches=1)
    return sketch.num_stages == wanted.costs.num_stages


def rows_of(problem: Problem, schedule: Schedule) -> Rows | None:
    """Write ``schedule`` as rows of ``problem``; None where it cannot be.

    Where ``problem`` splits backwards, a B becomes an I and a W.
    """
    if schedule.placement != problem.layout.placement or schedule.overlaps:
        return None
    split, num_stages = problem.layout.split, problem.num_stages
    lanes_of = {ActionKind.F: (0,), ActionKind.B: (1, 2) if split else (1,)}
    if split:
        lanes_of |= {ActionKind.I: (1,), ActionKind.W: (2,)}
    rows = []
    for row in schedule.actions:
        lanes = []
        following: dict[int, int] = {}
        for action in row:
            if action.kind not in lanes_of:
                return None
            for kind in lanes_of[action.kind]:
                lane = kind * num_stages + action.stage
                if following.get(lane, 0) != action.microbatch:
                    return None
                following[lane] = action.microbatch + 1
                lanes.append(lane)
        rows.append(numbered(problem, lanes))
    return rows


def peaks(schedule: Schedule, memory: Memory) -> tuple[int, ...]:
    """Per rank, the most activations and pending W's that it holds, in the unit of ``memory``.

    This is what is held against a cap. Messages are not counted: when they come and go is decided
    by the clock, not by a rank's row alone.
    """
    return tuple(_peak(row, memory) for row in schedule.actions)


def _peak(row: tuple[Action, ...], memory: Memory) -> int:
    held = most = 0
    for action in row:
        stage, kind = action.stage, action.kind
        forward, backward, pending = (
            memory.forward[stage],
            memory.backward[stage],
            memory.pending[stage],
        )
        if kind is ActionKind.F:
            held += forward
        elif kind is not ActionKind.W:
            held += backward
        most = max(most, held)
        if kind is ActionKind.B:
            held -= forward + backward
        elif kind is ActionKind.I:
            held += pending - forward - backward
        elif kind is ActionKind.W:
            held -= pending
        most = max(most, held)
    return most
