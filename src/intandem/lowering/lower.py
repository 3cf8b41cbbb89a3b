"""Schedule → Program: the passes, each verified before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intandem.collection import uncollected
from intandem.errors import ScheduleVerifyError
from intandem.ir import StageLinks
from intandem.lowering.recomputation import add_recomputation
from intandem.lowering.reduction import add_reduction
from intandem.lowering.transfers import add_transfers
from intandem.rules import check_links, check_program, verify

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from intandem.ir import Program, Schedule


def lower(
    schedule: Schedule,
    links: StageLinks | None = None,
    *,
    recompute: AbstractSet[int] = frozenset(),
    reduce: bool = False,
) -> Program:
    """Turn a compute order into what the ranks execute. Takes linear time.

    Args:
        schedule: any compute order that obeys the rules.
        links: which stages hand values to which; a chain if left out.
        recompute: stages that run their forward again before each backward.
        reduce: end every rank's row with a reduction of gradients held on several ranks.

    Raises:
        ScheduleVerifyError: if the schedule breaks a rule, or the links do.
        ValueError: if ``recompute`` names a stage that does not exist.
    """
    verify(schedule)
    links = links or StageLinks.chain(schedule.num_stages)
    if schedule.is_forward_only:
        links = StageLinks(links.activations, ())
    if found := check_links(schedule.placement, links):
        raise ScheduleVerifyError(found)
    with uncollected():  # a program is many small values
        program = _verified(add_transfers(schedule, links), schedule)
        if recompute:
            program = _verified(add_recomputation(program, recompute), schedule)
        if reduce:
            program = _verified(add_reduction(program), schedule)
    return program


def _verified(program: Program, schedule: Schedule) -> Program:
    if found := check_program(program, schedule):
        raise ScheduleVerifyError(found)
    return program
