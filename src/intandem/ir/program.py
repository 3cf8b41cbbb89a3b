"""What the runtime executes: a schedule with its transfers. The only such form there is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from intandem.errors import ScheduleParseError
from intandem.ir.action import Action
from intandem.ir.schedule import Schedule

if TYPE_CHECKING:
    from intandem.ir.placement import Placement


@dataclass(frozen=True, slots=True, order=True)
class Message:
    """What an action hands to another stage, written ``0F3>1``.

    A forward hands over activations, a B or I hands over gradients. Everything that goes from
    one action to one stage travels as one message.
    """

    source: Action
    target_stage: int

    def __str__(self) -> str:
        return f"{self.source}>{self.target_stage}"

    @classmethod
    def parse(cls, text: str) -> Message:
        """Read the form ``__str__`` writes.

        Raises:
            ScheduleParseError: if ``text`` is anything else.
        """
        source, _, target = text.partition(">")
        if not (target.isascii() and target.isdecimal()):
            msg = f"{text!r} is not a message; expected <action>><stage>, e.g. 0F3>1"
            raise ScheduleParseError(msg)
        return cls(Action.parse(source), int(target))


@dataclass(frozen=True, slots=True)
class Compute:
    """Run ``action`` on this rank; where it overlaps, together with the next compute."""

    action: Action
    overlaps: bool = False

    def __str__(self) -> str:
        return f"{self.action}&" if self.overlaps else str(self.action)


@dataclass(frozen=True, slots=True)
class Send:
    """Hand ``message`` to rank ``peer``. Does not hold the rank up."""

    message: Message
    peer: int

    def __str__(self) -> str:
        return f"send:{self.message}@{self.peer}"


@dataclass(frozen=True, slots=True)
class Recv:
    """Wait until ``message`` has arrived from rank ``peer``."""

    message: Message
    peer: int

    def __str__(self) -> str:
        return f"recv:{self.message}@{self.peer}"


@dataclass(frozen=True, slots=True)
class Recompute:
    """Run the forward ``action`` again, now keeping what its backward needs."""

    action: Action

    def __str__(self) -> str:
        return f"recompute:{self.action}"


@dataclass(frozen=True, slots=True)
class ReduceGrads:
    """Add up the gradients of everything held on several ranks (tied weights), once per step."""

    def __str__(self) -> str:
        return "reduce"


Instruction = Compute | Send | Recv | Recompute | ReduceGrads


@dataclass(frozen=True, slots=True)
class StageLinks:
    """Which stages hand values to which, as (source stage, target stage) pairs.

    Attributes:
        activations: pairs with source < target: a later stage reads values of an earlier one.
        gradients: pairs with source > target. The gradient of a value read by several stages
            goes from the last reader to the one before it, and so on to its producer, so that
            it is added up in one fixed order wherever the model is cut.
    """

    activations: tuple[tuple[int, int], ...]
    gradients: tuple[tuple[int, int], ...]

    @classmethod
    def chain(cls, num_stages: int) -> StageLinks:
        """Each stage feeds the next one; no skips."""
        forward = tuple((s, s + 1) for s in range(num_stages - 1))
        return cls(forward, tuple((t, s) for s, t in forward))


@dataclass(frozen=True, slots=True)
class Program:
    """Instructions of every rank, in execution order.

    Attributes:
        name: of the schedule it was lowered from.
        placement: stage to rank.
        num_microbatches: micro-batches per training step.
        links: which stages hand values to which.
        instructions: ``instructions[rank]`` is that rank's order.
    """

    name: str
    placement: Placement
    num_microbatches: int
    links: StageLinks
    instructions: tuple[tuple[Instruction, ...], ...]

    @property
    def num_ranks(self) -> int:
        """Ranks, counted by their orders."""
        return len(self.instructions)

    def actions(self, rank: int) -> tuple[Action, ...]:
        """Compute actions of ``rank``, in order, without transfers."""
        return tuple(i.action for i in self.instructions[rank] if isinstance(i, Compute))

    def compute_order(self) -> Schedule:
        """Return the schedule that this program executes: its computes, without transfers."""
        rows = [[i for i in row if isinstance(i, Compute)] for row in self.instructions]
        overlaps = frozenset(
            (rank, slot)
            for rank, row in enumerate(rows)
            for slot, compute in enumerate(row)
            if compute.overlaps
        )
        actions = tuple(tuple(compute.action for compute in row) for row in rows)
        return Schedule(self.name, self.placement, self.num_microbatches, actions, overlaps)

    def __str__(self) -> str:
        rows = (" ".join(map(str, row)) for row in self.instructions)
        return "\n".join(f"rank {rank}: {row}".rstrip() for rank, row in enumerate(rows))
