"""The library's own exceptions, and the finding that some of them carry.

A bad argument is a plain ValueError or TypeError; these are for everything else.

* PipelineError
  + ScheduleError          a schedule or program is malformed or impossible
    - ScheduleParseError     its text form cannot be read
    - ScheduleVerifyError    it breaks rules; carries every diagnostic
  + CaptureError           a model cannot be recorded, or a recording cannot be cut as asked
  + BatchError             a batch cannot be split, or ranks disagree about it
  + LossError              a loss is missing or is not a scalar
    - NonFiniteLossError     a micro-batch's loss is NaN or infinite
  + CheckpointError        a checkpoint cannot be written, or is not whole, or not this model's
  + ContractError          a message is not what its edge promises
  + RunError               a run cannot be set up or has ended early
    - ActionError            an action of this rank raised; carries its position
    - PeerFailureError       another rank raised, died, stopped or left
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One broken rule.

    Attributes:
        code: stable identifier, documented in ``docs/diagnostics.md``.
        rank: where.
        slot: index in that rank's order, or None if the finding is about an absence.
        message: what is wrong, with the values, and what was expected.
    """

    code: str
    rank: int
    slot: int | None
    message: str

    def __str__(self) -> str:
        slot = "" if self.slot is None else f" slot {self.slot}"
        return f"{self.code} rank {self.rank}{slot}: {self.message}"


class PipelineError(Exception):
    """Base class of the library's own exceptions."""


class ScheduleError(PipelineError):
    """A schedule or program is malformed or impossible."""


class ScheduleParseError(ScheduleError):
    """The text form of a schedule or program cannot be read."""


class ScheduleVerifyError(ScheduleError):
    """A schedule or program breaks one or more rules.

    Attributes:
        diagnostics: every finding, in rank order.
    """

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        self.diagnostics = tuple(diagnostics)
        lines = "\n".join(f"  {d}" for d in self.diagnostics)
        super().__init__(f"schedule has {len(self.diagnostics)} problem(s):\n{lines}")


class CaptureError(PipelineError):
    """A model cannot be recorded, or its recording cannot be cut as asked."""


class BatchError(PipelineError):
    """A batch cannot be split into micro-batches, or ranks disagree about it."""


class LossError(PipelineError):
    """A loss is missing, or is not a scalar tensor or a ``LossSum``."""


class NonFiniteLossError(LossError):
    """The loss of a micro-batch is NaN or infinite.

    Attributes:
        stage: the stage that computed the loss.
        microbatch: index of the first micro-batch with such a loss.
    """

    def __init__(self, value: float, *, stage: int, microbatch: int, step: int) -> None:
        self.value, self.stage, self.microbatch, self.step = value, stage, microbatch, step
        super().__init__(
            f"loss is {value} at stage {stage} micro-batch {microbatch} of step {step}; "
            "the gradients of this step are not usable: call zero_grad() before going on"
        )


class ContractError(PipelineError):
    """A message is not what its edge promises: identity, shape or dtype."""


class CheckpointError(PipelineError):
    """A checkpoint cannot be written, is not whole, or is not this model's; names the file."""


class RunError(PipelineError):
    """A run cannot be set up, or has ended early."""


class ActionError(RunError):
    """An action of this rank raised. The original exception is its ``__cause__``."""


class PeerFailureError(RunError):
    """Another rank raised, died, stopped answering or left; the message names it."""
