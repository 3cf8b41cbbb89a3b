"""From what a user gives to what the engine runs, checked on the way."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from intandem.errors import ScheduleError
from intandem.ir import Schedule
from intandem.ir.codes import NUM_KINDS, ActionCodes
from intandem.lowering import lower
from intandem.machine import Machine
from intandem.rules import obeys_all_but_order, verify
from intandem.simulator.chain_orders import compile_schedule
from intandem.simulator.engine import run
from intandem.simulator.network import Network
from intandem.simulator.program_orders import compile_program

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from intandem.costs import CostModel
    from intandem.ir import Placement, Program
    from intandem.simulator.compiled import Compiled
    from intandem.simulator.engine import Departure


def machine_for(
    placement: Placement, num_ranks: int, costs: CostModel, machine: Machine | None
) -> Machine:
    """Return ``machine``, or else the one that ``costs`` speak of: every link alike.

    Raises:
        ValueError: if ``costs`` are of another number of stages, or ``machine`` of ranks.
    """
    if costs.num_stages != placement.num_stages:
        got = f"costs of {costs.num_stages} stages for {placement.num_stages} stages"
        msg = f"{got}; expected the same number"
        raise ValueError(msg)
    if machine is None:
        return Machine.uniform(
            num_ranks,
            latency_s=costs.latency_s,
            bandwidth_bytes_per_s=costs.bandwidth_bytes_per_s,
        )
    if machine.num_ranks != num_ranks:
        got = f"a machine of {machine.num_ranks} ranks for {num_ranks} ranks"
        msg = f"{got}; expected the same number"
        raise ValueError(msg)
    return machine


def compile_order(
    order: Schedule | Program, costs: CostModel, machine: Machine, num_steps: int = 1
) -> Compiled:
    """Return the operations of a step of ``order``, numbered so that there is room for more steps.

    That a schedule's ranks do not wait for each other is left to the engine to find out. Where
    transfers hold ranks, each is an operation of its own, in the place that lowering gives it.

    Raises:
        ScheduleVerifyError: if ``order`` is not valid.
    """
    network = Network(costs, machine)
    if not isinstance(order, Schedule):
        verify(order)
        return compile_program(order, costs, network, num_steps)
    if not machine.transfers_overlap:
        return compile_program(lower(order), costs, network, num_steps)
    if not obeys_all_but_order(order):
        _refuse(order)
    codes = ActionCodes(order.num_stages, order.num_microbatches * num_steps)
    rows = [codes.of_actions(row) for row in order.actions]
    if not _obeys_its_own_order(codes, rows):
        _refuse(order)
    return compile_schedule(order, rows, costs, network, codes.num_microbatches)


def start_times(
    order: Schedule | Program,
    compiled: Compiled,
    rows: Sequence[Iterable[int]],
    departures: list[Departure] | None = None,
) -> list[array[float]]:
    """Return the start of each operation of ``rows``, in seconds.

    In arrays, which Python's garbage collector need not look into: lists take a quarter longer.

    Raises:
        ScheduleVerifyError: if ranks wait for each other forever.
    """
    starts = [array("d") for _ in rows]
    records = [row.append for row in starts]
    if run(compiled.operations, rows, records, departures):
        _refuse(order)
    return starts


def _obeys_its_own_order(codes: ActionCodes, rows: Iterable[Iterable[int]]) -> bool:
    """Whether what an action needs of its own stage comes before it."""
    count = codes.num_microbatches
    back = [_own_need(lane, needs, count) for lane, needs in enumerate(codes.needs())]
    done = bytearray(codes.num_codes)
    for row in rows:
        for code in row:
            done[code] = 1
            if not done[code + back[code // count]]:
                return False
    return True


def _own_need(lane: int, needs: tuple[tuple[int, ...], ...], count: int) -> int:
    """Distance from an action to the one of its own stage that it needs; 0 if it needs none."""
    stage = lane // NUM_KINDS
    own = (g[0] for g in needs if (lane * count + g[0]) // count // NUM_KINDS == stage)
    return next(own, 0)


def _refuse(order: Schedule | Program) -> None:
    """Say what is wrong with an order that is known to break a rule."""
    verify(order)
    msg = f"{order.name!r} cannot be run to its end"
    raise ScheduleError(msg)
