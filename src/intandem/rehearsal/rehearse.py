"""Rehearses programs and holds what they took against the simulator."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from intandem.ir import Timeline
from intandem.rehearsal.emulation import Traffic
from intandem.rehearsal.links import machine_of
from intandem.rehearsal.request import NUM_WARMUP, Part, Request
from intandem.rehearsal.running import TransportKind, run_all
from intandem.rules import verify
from intandem.simulator import simulate, simulate_steps

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from intandem.machine import Machine
    from intandem.rehearsal.emulation import Emulated
    from intandem.rehearsal.links import Transfer
    from intandem.rehearsal.running import Progress


@dataclass(frozen=True)
class Rehearsal:
    """A program that ran on emulated ranks.

    Attributes:
        part: the program and its costs.
        kind: how messages travelled.
        transfers: what they were found to take between idle ranks, before the first step.
        passes: of each step that counts, what each rank did, in rank order.
        overlapping: the same of steps without a barrier between them, warm-up included; empty
            where that was not asked for.
    """

    part: Part
    kind: TransportKind
    transfers: tuple[Transfer, ...]
    passes: tuple[tuple[Emulated, ...], ...]
    overlapping: tuple[tuple[Emulated, ...], ...] = ()

    @cached_property
    def machine(self) -> Machine:
        """The links as they were measured."""
        return machine_of(self.transfers, self.part.program.num_ranks)

    @cached_property
    def planned(self) -> Timeline:
        """What the simulator says, with the durations asked for and the links as measured."""
        return simulate(self.part.program, self.part.costs, self.machine)

    @cached_property
    def steps(self) -> tuple[Timeline, ...]:
        """What happened, of each step that counts."""
        num_ranks = self.part.program.num_ranks
        return tuple(
            Timeline(tuple(span for one in ranks for span in one.spans), num_ranks)
            for ranks in self.passes
        )

    @property
    def measured(self) -> Timeline:
        """The step of median length; of two in the middle, the longer one."""
        in_order = sorted(self.steps, key=lambda step: step.makespan_s)
        return in_order[len(in_order) // 2]

    @property
    def measured_s(self) -> float:
        """Median makespan of the steps."""
        return statistics.median(step.makespan_s for step in self.steps)

    @property
    def ratio(self) -> float:
        """Measured by simulated; 1 where both are nothing."""
        planned_s = self.planned.makespan_s
        return self.measured_s / planned_s if planned_s > 0 else 1.0

    @cached_property
    def planned_overlapping_s(self) -> float:
        """Seconds per step without a barrier, as the simulator says; of as many as were run."""
        part = self.part
        alone = replace(part.costs, optimizer_s=(), reduction_s=(), gradient_bytes=())
        steps = simulate_steps(part.program, alone, self.machine, num_steps=len(self.overlapping))
        return _step_s([max(ends_s) for ends_s in steps.ends_s])

    @property
    def overlapping_s(self) -> float:
        """Seconds per step without a barrier: from the end of the warm-up to the last end."""
        return _step_s(
            [max(s.end_s for one in ranks for s in one.spans) for ranks in self.overlapping]
        )

    @property
    def overslept(self) -> float:
        """By how much actions were longer than asked for, as a share of that; of ``measured``.

        That is the machine's doing, not the runtime's: a thread that is not woken in time.
        """
        asked_s = self.planned.busy_s
        return self.measured.busy_s / asked_s - 1 if asked_s > 0 else 0.0

    @property
    def traffic(self) -> Traffic:
        """Messages that all ranks received in a step."""
        received = [one.received for one in self.passes[-1]]
        return Traffic(sum(r.num_messages for r in received), sum(r.num_bytes for r in received))


def rehearse(
    parts: Sequence[Part],
    kind: TransportKind,
    *,
    num_steps: int = 5,
    overlap: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> tuple[Rehearsal, ...]:
    """Run programs on emulated ranks, one after another.

    Args:
        parts: programs of one number of ranks, and costs of as many stages as they have.
        kind: how messages travel.
        num_steps: of each part; two more are run before them, and not counted.
        overlap: whether to run as many again, of which each rank begins the next when it has done
            the last, as a pipeline's ranks do.
        on_progress: told of every step, from a thread of its own.

    Raises:
        RunError: if a rank failed.
        ScheduleVerifyError: if a program breaks a rule.
        ValueError: if there is nothing to do, or the parts do not go together.
    """
    _check(parts, num_steps)
    request = Request(tuple(parts), num_steps, overlap)
    reports = run_all(request, kind, on_progress)
    transfers, num_apart = reports[0].transfers, NUM_WARMUP + num_steps
    found = []
    for i, part in enumerate(parts):
        steps = tuple(zip(*(report.passes[i] for report in reports), strict=True))
        apart, overlapping = steps[NUM_WARMUP:num_apart], steps[num_apart:]
        found.append(Rehearsal(part, kind, transfers, apart, overlapping))
    return tuple(found)


def _step_s(ends_s: Sequence[float]) -> float:
    """Seconds per step of those that count, given when all ranks have ended each."""
    return (ends_s[-1] - ends_s[NUM_WARMUP - 1]) / (len(ends_s) - NUM_WARMUP)


def _check(parts: Sequence[Part], num_steps: int) -> None:
    if num_steps < 1:
        msg = f"num_steps is {num_steps}; expected at least 1"
        raise ValueError(msg)
    found = {part.program.num_ranks for part in parts}
    if len(found) != 1:
        counts = ", ".join(map(str, sorted(found))) or "none"
        msg = f"programs of {counts} ranks; expected one number of ranks"
        raise ValueError(msg)
    for part in parts:
        verify(part.program)
        if part.costs.num_stages != (num_stages := part.program.placement.num_stages):
            msg = f"costs of {part.costs.num_stages} stages for {num_stages} stages"
            raise ValueError(msg)
