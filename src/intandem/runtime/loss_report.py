"""The loss of a step as every rank learns it, and as the user holds it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NoReturn, Self, SupportsFloat

from intandem.errors import LossError, NonFiniteLossError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


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

    @property
    def is_finite(self) -> bool:
        """Whether the losses of all micro-batches are numbers."""
        return all(map(math.isfinite, self.microbatches))

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


class PromisedLoss:
    """The loss of a step that ranks may still be at: used like a number, it is waited for.

    Args:
        wait: returns the report once it is there.
    """

    def __init__(self, wait: Callable[[], LossReport]) -> None:
        self._wait = wait

    @cached_property
    def _loss(self) -> StepLoss:
        return StepLoss(self._wait())

    def item(self) -> float:
        """Return the loss of the whole batch."""
        return self._loss.item()

    @property
    def microbatches(self) -> tuple[float, ...]:
        """Loss of each micro-batch, as the loss function gave it."""
        return self._loss.microbatches

    @property
    def metrics(self) -> dict[str, float]:
        """What the loss function returned besides ``loss``, of the whole batch, by name."""
        return self._loss.metrics

    def backward(self, *args: object, **kwargs: object) -> NoReturn:
        """Raise: ``step`` runs the backward of every micro-batch.

        Raises:
            LossError: always.
        """
        self._loss.backward(*args, **kwargs)

    def __float__(self) -> float:
        return self.item()

    def __bool__(self) -> bool:
        return bool(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec)

    def __str__(self) -> str:
        return str(self._loss)

    def __repr__(self) -> str:
        return repr(self._loss)

    def __hash__(self) -> int:
        return hash(self.item())

    def __eq__(self, other: object) -> bool:
        return self.item() == (other.item() if isinstance(other, PromisedLoss) else other)

    def __lt__(self, other: SupportsFloat) -> bool:
        return self.item() < float(other)

    def __le__(self, other: SupportsFloat) -> bool:
        return self.item() <= float(other)

    def __gt__(self, other: SupportsFloat) -> bool:
        return self.item() > float(other)

    def __ge__(self, other: SupportsFloat) -> bool:
        return self.item() >= float(other)

    def __add__(self, other: SupportsFloat) -> float:
        return self.item() + float(other)

    def __sub__(self, other: SupportsFloat) -> float:
        return self.item() - float(other)

    def __mul__(self, other: SupportsFloat) -> float:
        return self.item() * float(other)

    def __truediv__(self, other: SupportsFloat) -> float:
        return self.item() / float(other)

    def __radd__(self, other: SupportsFloat) -> float:
        return float(other) + self.item()

    def __rsub__(self, other: SupportsFloat) -> float:
        return float(other) - self.item()

    def __rmul__(self, other: SupportsFloat) -> float:
        return float(other) * self.item()

    def __rtruediv__(self, other: SupportsFloat) -> float:
        return float(other) / self.item()

    def __neg__(self) -> float:
        return -self.item()

    def __abs__(self) -> float:
        return abs(self.item())

    def __round__(self, num_digits: int | None = None) -> float:
        return round(self.item(), num_digits)
