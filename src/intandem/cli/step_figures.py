"""The figures of several steps, as ``show`` prints them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intandem.views import units

if TYPE_CHECKING:
    from intandem.simulator import StepSequence


def steps_object(steps: StepSequence | None) -> dict[str, object] | None:
    """Every figure, for JSON; None if no steps were asked for."""
    if steps is None:
        return None
    return {
        "num_steps": steps.num_steps,
        "makespan_s": steps.makespan_s,
        "barrier_makespan_s": steps.barrier_makespan_s,
        "steady_step_s": steps.steady_step_s,
        "barrier_step_s": steps.barrier_step_s,
        "period": steps.period,
    }


def steps_facts(steps: StepSequence | None) -> tuple[tuple[str, str, str], ...]:
    """Return (what, value, what is to say of it) of all steps together, and of one."""
    if steps is None:
        return ()
    with_s = units.duration(steps.barrier_makespan_s)
    note = f"for {steps.num_steps}, no barrier between them; {with_s} with one"
    whole = ("steps", units.duration(steps.makespan_s), note)
    if steps.num_steps == 1:
        return (whole,)
    each_s = units.duration(steps.barrier_step_s)
    note = f"each, {_from_when(steps.period)}; {each_s} with a barrier"
    return whole, ("steady step", units.duration(steps.steady_step_s), note)


def _from_when(period: int | None) -> str:
    if period is None:
        return "on average over the later half"
    return "once steps repeat" if period == 1 else f"once {period} steps repeat the last {period}"
