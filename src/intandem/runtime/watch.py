"""Who is where, and who failed: what a rank tells the others about itself.

The executor says where it is before each instruction; the first failure of a run is told to
every rank and ends every wait.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

BETWEEN_STEPS = "none (between steps)"
"""What a rank does while the user's own code runs."""

OPTIMIZER = "optimizer"
"""What a rank does while it updates its parameters."""


class Position(NamedTuple):
    """Where a rank is in its program. Readable from any thread.

    Attributes:
        step: number of the step.
        slot: index of the instruction in the rank's program.
        stage: stage of the instruction, or None where it has none.
        microbatch: micro-batch of the instruction, or None where it has none.
        doing: the instruction's text, such as ``1F3`` or ``recv:0F3>1@0``; a call of the user's,
            such as ``save()``; ``OPTIMIZER`` or ``BETWEEN_STEPS``.
    """

    step: int
    slot: int
    stage: int | None
    microbatch: int | None
    doing: str

    @property
    def is_between_steps(self) -> bool:
        """Whether the user's own code runs."""
        return self.doing == BETWEEN_STEPS

    @property
    def is_action(self) -> bool:
        """Whether it is part of every step, and takes about as long in each."""
        return not (self.is_between_steps or self.doing.endswith("()"))

    def __str__(self) -> str:
        stage = "" if self.stage is None else f" stage {self.stage}"
        microbatch = "" if self.microbatch is None else f" micro-batch {self.microbatch}"
        return f"step {self.step}{stage}{microbatch} action {self.doing}"


def after(position: Position | None, what: str) -> Position:
    """Return where a rank is that does ``what`` after it has been at ``position``."""
    step, slot = (0, 0) if position is None else (position.step, position.slot)
    return Position(step, slot, None, None, what)


class Watch(Protocol):
    """Shared knowledge of a run's health. Every method is cheap and may be called anywhere."""

    def at(self, position: Position) -> None:
        """Say where this rank is now."""
        ...

    def begin(self, what: str) -> None:
        """Say that this rank is at something between passes, such as ``OPTIMIZER``."""
        ...

    def be_patient(self, step: int) -> None:
        """Say that something runs for the first time in ``step``: it may take long to compile."""
        ...

    def fail(self, error: BaseException) -> None:
        """Say that this rank cannot go on; the first failure of a run wins."""
        ...

    def suspect(self, reason: str) -> None:
        """Say that something was seen here that another rank's death may have caused.

        Returns at once; if a rank is dead, ``check`` soon raises.
        """
        ...

    def check(self) -> None:
        """Return while the run is healthy.

        Raises:
            PeerFailureError: once another rank has failed; names rank, position and cause.
        """
        ...

    def tick(self) -> None:
        """Say that this rank waits for another, in a place where it cannot ``check``."""
        ...

    def close(self) -> None:
        """This rank leaves the run in good order."""
        ...
