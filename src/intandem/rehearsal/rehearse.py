"""Rehearses programs and holds what they took against the simulator."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from intandem.ir import Timeline
from intandem.rehearsal.emulation import Traffic
from intandem.rehearsal.links import machine_of
from intandem.rehearsal.request import NUM_WARMUP, Part, Request
from intandem.rehearsal.running import TransportKind, run_all
from intandem.rules import verify
from intandem.simulator import simulate

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
    """

    part: Part
    kind: TransportKind
    transfers: tuple[Transfer, ...]
    passes: tuple[tuple[Emulated, ...], ...]

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
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> tuple[Rehearsal, ...]:
    """Run programs on emulated ranks, one after another.

    Args:
        parts: programs of one number of ranks, and costs of as many stages as they have.
        kind: how messages travel.
        num_steps: of each part; two more are run before them, and not counted.
        on_progress: told of every step, from a thread of its own.

    Raises:
        RunError: if a rank failed.
        ScheduleVerifyError: if a program breaks a rule.
        ValueError: if there is nothing to do, or the parts do not go together.
    """
    _check(parts, num_steps)
    request = Request(tuple(parts), num_steps)
    reports = run_all(request, kind, on_progress)
    transfers = reports[0].transfers
    return tuple(
        Rehearsal(
            part,
            kind,
            transfers,
            tuple(zip(*(r.passes[i][NUM_WARMUP:] for r in reports), strict=True)),
        )
        for i, part in enumerate(parts)
    )


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
