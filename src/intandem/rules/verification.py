"""All rules at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intandem.argument_types import require_type
from intandem.errors import ScheduleVerifyError
from intandem.ir import Program, Schedule
from intandem.rules.memory_rules import check_memory
from intandem.rules.program_rules import check_program
from intandem.rules.schedule_rules import check_schedule

if TYPE_CHECKING:
    from intandem.errors import Diagnostic


def verify(order: Schedule | Program, *, max_activations: int | None = None) -> None:
    """Raise unless ``order`` obeys every rule.

    Args:
        order: a schedule, or a program with its transfers.
        max_activations: if given, no rank may hold more stage activations at once.

    Raises:
        ScheduleVerifyError: carrying all diagnostics.
        ValueError: if ``max_activations`` is less than 1.
        TypeError: if ``order`` is neither.
    """
    if found := check(order, max_activations=max_activations):
        raise ScheduleVerifyError(found)


def check(
    order: Schedule | Program, *, max_activations: int | None = None
) -> tuple[Diagnostic, ...]:
    """Return what ``verify`` would raise, in rank order.

    Raises:
        ValueError: if ``max_activations`` is less than 1.
        TypeError: if ``order`` is neither.
    """
    require_type("order", order, (Schedule, Program), "a Schedule or a Program")
    found = check_schedule(order) if isinstance(order, Schedule) else check_program(order)
    if max_activations is None:
        return found
    over = check_memory(order, max_activations)
    return tuple(sorted((*found, *over), key=lambda d: d.rank))
