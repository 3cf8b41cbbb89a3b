"""When each action of a step runs."""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING

from intandem.argument_types import require_type
from intandem.collection import uncollected
from intandem.costs import CostModel
from intandem.ir import Program, Schedule, Span, Timeline
from intandem.simulator.preparing import compile_order, machine_for, start_times

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intandem.machine import Machine
    from intandem.simulator.compiled import Compiled


def simulate(
    order: Schedule | Program, costs: CostModel, machine: Machine | None = None
) -> Timeline:
    """Run a schedule or program on paper. Takes linear time.

    A recomputation holds its rank like a forward and is shown as part of the backward that it
    stands directly before; elsewhere it is not shown. Two actions that overlap have one span each,
    over the same time. What comes at the end of a step is no action, and not shown: see
    ``simulate_steps``.

    Args:
        order: verified before use. A schedule runs as the program it lowers to, as a chain of
            stages.
        costs: of as many stages.
        machine: of as many ranks. If given, its links count, and not those of ``costs``.

    Returns:
        Spans in rank order; each rank's in the order it runs them. Times start at 0.

    Raises:
        ScheduleVerifyError: if ``order`` is not valid.
        ValueError: if ``costs`` are of another number of stages, or ``machine`` of ranks.
        TypeError: if ``order`` or ``costs`` are something else.
    """
    require_type("order", order, (Schedule, Program), "a Schedule or a Program")
    require_type("costs", costs, CostModel, "a CostModel")
    machine = machine_for(order.placement, order.num_ranks, costs, machine)
    compiled = compile_order(order, costs, machine)
    starts = start_times(order, compiled, compiled.rows)
    return Timeline(tuple(spans_of(order, compiled, starts)), order.num_ranks)


def spans_of(
    order: Schedule | Program, compiled: Compiled, starts: Sequence[Sequence[float]]
) -> list[Span]:
    """Return the spans of one step, in rank order."""
    spans: list[Span] = []
    count, hold_s = compiled.operations.count, compiled.operations.hold_s
    with uncollected():
        for rank, (row, began) in enumerate(zip(compiled.rows, starts, strict=True)):
            ends = [start + hold_s[op // count] for op, start in zip(row, began, strict=True)]
            shown = compiled.shown[rank]
            if shown is not None:
                first, last = [began[i] for i in shown.first], [ends[i] for i in shown.last]
                spans += map(Span._make, zip(repeat(rank), shown.actions, first, last))
            elif isinstance(order, Schedule):
                spans += map(Span._make, zip(repeat(rank), order.actions[rank], began, ends))
    return spans
