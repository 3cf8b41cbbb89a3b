"""Several steps one after another, with and without a barrier between them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from intandem.simulator.preparing import compile_order, machine_for, start_times
from intandem.simulator.step_end import StepEnd

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from intandem.costs import CostModel
    from intandem.ir import Program, Schedule
    from intandem.machine import Machine

_REPEATS_WITHIN = 1e-9
"""Relative difference of seconds that are taken for the same."""


@dataclass(frozen=True, slots=True)
class StepSequence:
    """When the steps of a run end, if nothing but data makes ranks wait.

    Attributes:
        ends_s: per step and rank, when the rank has updated its weights: it begins the next step
            then. Seconds from the first action of the first step.
        barrier_step_s: seconds of each step if none begins before all ranks have ended the last.
        period: after so many steps the ranks stand to each other as before; None if they have not
            come to that.
    """

    ends_s: tuple[tuple[float, ...], ...]
    barrier_step_s: float
    period: int | None

    @property
    def num_steps(self) -> int:
        """Steps simulated."""
        return len(self.ends_s)

    @property
    def makespan_s(self) -> float:
        """Seconds of all steps, without barriers."""
        return max(self.ends_s[-1])

    @property
    def barrier_makespan_s(self) -> float:
        """Seconds of all steps, with a barrier after each."""
        return self.num_steps * self.barrier_step_s

    @property
    def steady_step_s(self) -> float:
        """Seconds per step without barriers, once steps repeat.

        Exact where ``period`` is not None; else the mean over the later half of the steps.
        """
        if self.num_steps == 1:
            return self.barrier_step_s
        num_last = self.period or self.num_steps // 2
        return (max(self.ends_s[-1]) - max(self.ends_s[-1 - num_last])) / num_last


def simulate_steps(
    order: Schedule | Program,
    costs: CostModel,
    machine: Machine | None = None,
    *,
    num_steps: int,
) -> StepSequence:
    """Run ``num_steps`` steps on paper. Takes linear time.

    A step ends, on each rank, with the reduction of gradients (at the ``ReduceGrads`` of a program,
    else after the last action) and the optimizer.

    Args:
        order: of one step; verified before use.
        costs: of as many stages.
        machine: of as many ranks. If given, its links count, and not those of ``costs``.
        num_steps: at least 1.

    Raises:
        ScheduleVerifyError: if ``order`` is not valid.
        ValueError: if ``costs`` are of another number of stages, or ``machine`` of ranks; or if
            there is no step.
    """
    if num_steps < 1:
        msg = f"num_steps is {num_steps}; expected at least 1"
        raise ValueError(msg)
    machine = machine_for(order.placement, order.num_ranks, costs, machine)
    ends_s = _ends_s(order, costs, machine, num_steps)
    alone_s = ends_s if num_steps == 1 else _ends_s(order, costs, machine, 1)
    return StepSequence(ends_s, max(alone_s[0]), _period(ends_s))


def _ends_s(
    order: Schedule | Program, costs: CostModel, machine: Machine, num_steps: int
) -> tuple[tuple[float, ...], ...]:
    """Per step and rank, when the optimizer is done."""
    compiled = compile_order(order, costs, machine, num_steps)
    operations, rows = compiled.operations, compiled.rows
    step_end = StepEnd(order.placement, costs, machine, operations)
    for rank, row in enumerate(rows):
        if not compiled.reduces[rank]:
            row += step_end.reduction(rank)
        row.append(step_end.optimizer(rank))
    several = [_repeated(row, order.num_microbatches, num_steps) for row in rows]
    starts = start_times(order, compiled, several)
    ends_s = []
    for row, began in zip(rows, starts, strict=True):
        hold_s = operations.hold_s[row[-1] // operations.count]
        ends_s.append([start_s + hold_s for start_s in began[len(row) - 1 :: len(row)]])
    return tuple(zip(*ends_s, strict=True))


def _repeated(row: Sequence[int], num_microbatches: int, num_steps: int) -> Iterator[int]:
    """The operations of all steps: those of later ones have higher indices."""
    for step in range(num_steps):
        moved = step * num_microbatches
        for operation in row:
            yield operation + moved


def _period(ends_s: Sequence[Sequence[float]]) -> int | None:
    """The least number of steps that was the same for all ranks, twice in a row."""
    for period in range(1, (len(ends_s) - 1) // 2 + 1):
        last, before, first = ends_s[-1], ends_s[-1 - period], ends_s[-1 - 2 * period]
        length_s = last[0] - before[0]
        pairs = [*zip(before, last, strict=True), *zip(first, before, strict=True)]
        within = _REPEATS_WITHIN * max(last)
        if all(math.isclose(b - a, length_s, rel_tol=0, abs_tol=within) for a, b in pairs):
            return period
    return None
