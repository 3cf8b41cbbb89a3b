"""What a loss is, how micro-batches' losses become the batch's, and who learns its value.

A scalar is a mean over rows: micro-batch i weighs rows_i / rows. A ``LossSum`` weighs by its
count over all micro-batches, which is known only after the last forward; until then gradients are
scaled with what the first micro-batch suggests, and ``LossReport.correction`` puts that right.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from intandem.errors import LossError, NonFiniteLossError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LossFunction = "Callable[[Any, Any], Tensor | LossSum]"


@dataclass(frozen=True, slots=True)
class LossSum:
    """A loss that is a sum over counted things (tokens), to be divided by the batch's count.

    Attributes:
        sum: scalar tensor.
        count: how many things were summed; a number or a scalar tensor. May be 0.
    """

    sum: Tensor
    count: int | float | Tensor


@dataclass(frozen=True, slots=True)
class LossTerm:
    """One micro-batch's loss: what to differentiate, and what it counts for.

    Attributes:
        root: scalar tensor.
        count: of its LossSum, or None for a mean over rows.
    """

    root: Tensor
    count: float | None


def loss_term(output: Any, microbatch: Any, loss: Callable[[Any, Any], Any] | None) -> LossTerm:
    """Return the loss of one micro-batch.

    Args:
        output: what the model returned.
        microbatch: what it was given.
        loss: the user's function, or None when the output carries the loss.

    Raises:
        LossError: if there is none, or it is not a scalar.
    """
    found = loss(output, microbatch) if loss is not None else _carried(output)
    if isinstance(found, LossSum):
        _check_scalar(found.sum, "LossSum.sum")
        return LossTerm(found.sum, float(found.count))
    _check_scalar(found, "the loss")
    return LossTerm(found, None)


def _carried(output: Any) -> Any:
    if isinstance(output, Mapping) and output.get("loss") is not None:
        return output["loss"]
    if (loss := getattr(output, "loss", None)) is not None:
        return loss
    if isinstance(output, LossSum) or (isinstance(output, Tensor) and output.dim() == 0):
        return output
    msg = (
        f"no loss: the model's output ({type(output).__name__}) has no `loss`; give "
        "Pipeline(..., loss=loss_fn) with loss_fn(output, batch) returning a scalar or LossSum, "
        "or let the model compute it (Hugging Face models do when the batch has `labels`)"
    )
    raise LossError(msg)


def _check_scalar(found: Any, what: str) -> None:
    if not isinstance(found, Tensor):
        msg = f"{what} is a {type(found).__name__}; expected a scalar tensor or a LossSum"
        raise LossError(msg)
    if found.numel() != 1 or not found.is_floating_point():
        msg = (
            f"{what} has shape {tuple(found.shape)} and dtype {found.dtype}; expected one "
            "floating-point number, such as its mean()"
        )
        raise LossError(msg)


class LossTally:
    """Weighs the micro-batches of one step, on the last stage.

    Args:
        weights: what each micro-batch's scalar loss is multiplied by; a ``LossSum`` goes by its
            count instead.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = tuple(weights)
        self._terms: dict[int, LossTerm] = {}
        self._provisional: float | None = None

    def add(self, microbatch: int, term: LossTerm) -> float:
        """Take in one micro-batch's loss and return the gradient that its root is given."""
        self._terms[microbatch] = LossTerm(term.root.detach(), term.count)
        return self.weight(microbatch)

    def weight(self, microbatch: int) -> float:
        """Return the gradient that the loss of a micro-batch taken in before is given."""
        count = self._terms[microbatch].count
        if count is None:
            return self._weights[microbatch]
        if self._provisional is None:
            self._provisional = 1.0 / (max(count, 1.0) * len(self._weights))
        return self._provisional

    def report(self) -> LossReport:
        """Return what every rank needs to know once the last micro-batch is in."""
        terms = [self._terms[index] for index in range(len(self._weights))]
        if terms[0].count is None:
            # A micro-batch of no weight has no loss: a mean over nothing is not a number.
            pairs = list(zip(self._weights, terms, strict=True))
            losses = [float(term.root) if weight else 0.0 for weight, term in pairs]
            total = math.fsum(w * v for w, v in zip(self._weights, losses, strict=True))
            return LossReport(total, tuple(losses), 1.0)
        sums = tuple(float(term.root) for term in terms)
        count = math.fsum(term.count or 0.0 for term in terms)
        if count == 0 or self._provisional is None:
            return LossReport(0.0, sums, 0.0)
        factor = 1.0 / (self._provisional * count)
        correction = 1.0 if math.isclose(factor, 1.0, rel_tol=1e-15) else factor
        return LossReport(math.fsum(sums) / count, sums, correction)


@dataclass(frozen=True, slots=True)
class LossReport:
    """The loss of a step.

    Attributes:
        value: of the whole batch.
        microbatches: of each micro-batch, as its loss function gave it.
        correction: factor that the step's gradients are still to be multiplied by.
    """

    value: float
    microbatches: tuple[float, ...]
    correction: float

    def encode(self) -> bytes:
        """Return the form that ``decode`` reads; floats survive exactly."""
        return json.dumps([self.value, self.microbatches, self.correction]).encode()

    @classmethod
    def decode(cls, data: bytes) -> LossReport:
        """Read what ``encode`` wrote."""
        value, microbatches, correction = json.loads(data)
        return cls(value, tuple(microbatches), correction)

    def check_finite(self, *, stage: int, step: int) -> None:
        """Raise if the loss cannot be used.

        Raises:
            NonFiniteLossError: naming the first micro-batch whose loss is NaN or infinite.
        """
        for microbatch, loss in enumerate(self.microbatches):
            if not math.isfinite(loss):
                raise NonFiniteLossError(loss, stage=stage, microbatch=microbatch, step=step)


class StepLoss:
    """The loss of one step: a number that every rank can read.

    Compare it, format it, or take ``float()`` of it. Gradients are complete already.
    """

    def __init__(self, report: LossReport) -> None:
        self._report = report

    def __float__(self) -> float:
        return self._report.value

    def item(self) -> float:
        """Return the loss of the whole batch."""
        return self._report.value

    @property
    def microbatches(self) -> tuple[float, ...]:
        """Loss of each micro-batch, as the loss function gave it."""
        return self._report.microbatches

    def backward(self, *args: object, **kwargs: object) -> NoReturn:
        """Raise: ``step`` has run the backward of every micro-batch.

        Raises:
            LossError: always.
        """
        del args, kwargs
        msg = "step() has already run backward: gradients are in .grad; drop the backward() call"
        raise LossError(msg)

    def __format__(self, spec: str) -> str:
        return format(self._report.value, spec)

    def __str__(self) -> str:
        return str(self._report.value)

    def __repr__(self) -> str:
        return f"StepLoss({self._report.value!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StepLoss | float | int) and float(self) == float(other)

    def __lt__(self, other: StepLoss | float) -> bool:
        return float(self) < float(other)

    def __le__(self, other: StepLoss | float) -> bool:
        return float(self) <= float(other)

    def __gt__(self, other: StepLoss | float) -> bool:
        return float(self) > float(other)

    def __ge__(self, other: StepLoss | float) -> bool:
        return float(self) >= float(other)

    def __hash__(self) -> int:
        return hash(self._report.value)


def gradient_seed(term: LossTerm, weight: float) -> Tensor:
    """Return the gradient that ``term.root`` is given in backward."""
    return torch.full_like(term.root, weight)
