"""The loss of a step as every rank learns it, and as the user holds it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn, Self

from intandem.errors import LossError, NonFiniteLossError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class LossReport:
    """The loss of a step.

    Attributes:
        value: of the whole batch.
        microbatches: of each micro-batch, as its loss function gave it; of the whole batch alone
            where that is computed at once.
        correction: factor that the step's gradients are still to be multiplied by.
        metrics: of the whole batch, by name.
    """

    value: float
    microbatches: tuple[float, ...]
    correction: float
    metrics: Mapping[str, float] = field(default_factory=dict)

    def check_finite(self, *, stage: int, step: int) -> None:
        """Raise if the loss cannot be used.

        Raises:
            NonFiniteLossError: naming the first micro-batch whose loss is NaN or infinite.
        """
        for microbatch, loss in enumerate(self.microbatches):
            if not math.isfinite(loss):
                raise NonFiniteLossError(loss, stage=stage, microbatch=microbatch, step=step)


class StepLoss(float):
    """The loss of one step: a number that every rank can read. Gradients are complete already.

    Args:
        report: of the step.
    """

    _report: LossReport

    def __new__(cls, report: LossReport) -> Self:
        """Make a float that keeps its report."""
        loss = super().__new__(cls, report.value)
        loss._report = report
        return loss

    def item(self) -> float:
        """Return the loss of the whole batch."""
        return self._report.value

    @property
    def microbatches(self) -> tuple[float, ...]:
        """Loss of each micro-batch, as the loss function gave it."""
        return self._report.microbatches

    @property
    def metrics(self) -> dict[str, float]:
        """What the loss function returned besides ``loss``, of the whole batch, by name."""
        return dict(self._report.metrics)

    def backward(self, *args: object, **kwargs: object) -> NoReturn:
        """Raise: ``step`` has run the backward of every micro-batch.

        Raises:
            LossError: always.
        """
        del args, kwargs
        msg = "step() has already run backward: gradients are in .grad; drop the backward() call"
        raise LossError(msg)

    def __str__(self) -> str:
        return float.__repr__(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({float.__repr__(self)})"

    def __reduce__(self) -> tuple[type[StepLoss], tuple[LossReport]]:
        return type(self), (self._report,)


class EvaluationLoss(StepLoss):
    """The loss of one evaluation: a number that every rank can read; there are no gradients."""

    def backward(self, *args: object, **kwargs: object) -> NoReturn:
        """Raise: ``evaluate`` computes no gradients.

        Raises:
            LossError: always.
        """
        del args, kwargs
        msg = "evaluate() computes no gradients; to train on this batch, call step(batch) instead"
        raise LossError(msg)
