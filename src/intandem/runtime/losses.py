"""What a loss is, how micro-batches' losses become the batch's, and who learns its value.

A scalar is a mean over rows: micro-batch i weighs rows_i / rows. A ``LossSum`` weighs by its
count over all micro-batches, which is known only after the last forward; until then gradients are
scaled with what the first micro-batch suggests, and ``LossReport.correction`` puts that right.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from intandem.errors import LossError, NonFiniteLossError, PipelineError
from intandem.recorder.stage_chain import entry_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

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
        LossError: if there is none, it is not a scalar, or the user's function raises.
    """
    found = _carried(output) if loss is None else _called(loss, output, microbatch)
    if isinstance(found, LossSum):
        _check_scalar(found.sum, "LossSum.sum")
        return LossTerm(found.sum, float(found.count))
    _check_scalar(found, "the loss")
    return LossTerm(found, None)


def _called(loss: Callable[[Any, Any], Any], output: Any, microbatch: Any) -> Any:
    try:
        return loss(output, microbatch)
    except PipelineError:
        raise
    except Exception as error:
        msg = (
            f"loss(output, batch) raised {type(error).__name__}: {error}; output is "
            f"{_described(output)}, and batch, all of the micro-batch, is "
            f"{_described(microbatch)}{_advice(microbatch)}"
        )
        raise LossError(msg) from error


def _described(tree: Any, depth: int = 2) -> str:
    """Write types and shapes: ``(float32 (4, 6), int64 (4,))``."""
    if isinstance(tree, Tensor):
        return f"{str(tree.dtype).removeprefix('torch.')} {tuple(tree.shape)}"
    if isinstance(tree, Mapping) and depth:
        items = [f"{key!r}: {_described(child, depth - 1)}" for key, child in tree.items()]
        return f"{'' if type(tree) is dict else type(tree).__name__}{{{', '.join(items)}}}"
    if type(tree) in {tuple, list} and depth:
        text = ", ".join(_described(child, depth - 1) for child in tree)
        return f"({text})" if type(tree) is tuple else f"[{text}]"
    return type(tree).__name__


def _advice(microbatch: Any) -> str:
    if isinstance(microbatch, Mapping) and microbatch:
        target = f"batch[{list(microbatch)[-1]!r}]"
    elif isinstance(microbatch, tuple | list) and microbatch:
        target = f"batch[{len(microbatch) - 1}]"
    else:
        return ""
    return f"; take from it what is needed: loss=lambda output, batch: F.mse_loss(output, {target})"


def refuse_missing_loss(model: nn.Module, microbatch: Any) -> None:
    """Refuse a batch with more items than ``forward`` takes where no loss is there to take them.

    Raises:
        LossError: saying how to give one.
    """
    if not isinstance(microbatch, tuple | list):
        return
    kinds = [p.kind for p in inspect.signature(entry_of(model).forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return
    positional = {
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    }
    num_taken = sum(1 for kind in kinds if kind in positional)
    if len(microbatch) > num_taken:
        msg = (
            f"no loss: the batch has {len(microbatch)} items, and forward of "
            f"{type(model).__name__} takes {num_taken}; if the others are for the loss, give it: "
            "Pipeline(..., loss=lambda output, batch: "
            f"F.mse_loss(output, batch[{len(microbatch) - 1}]))"
        )
        raise LossError(msg)


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
        is_sum: whether every loss is a ``LossSum`` (true) or none is; None to do as the first.
    """

    def __init__(self, weights: Sequence[float], *, is_sum: bool | None = None) -> None:
        self._weights = tuple(weights)
        self._is_sum = is_sum
        self._terms: dict[int, LossTerm] = {}
        self._provisional: float | None = None

    def add(self, microbatch: int, term: LossTerm) -> float:
        """Take in one micro-batch's loss and return the gradient that its root is given.

        Raises:
            LossError: if it is a ``LossSum`` and others, or the example's, are not, or the reverse.
        """
        is_sum = term.count is not None
        if self._is_sum is None:
            self._is_sum = is_sum
        if is_sum != self._is_sum:
            found, before = ("LossSum", "scalar") if is_sum else ("scalar", "LossSum")
            msg = (
                f"the loss of micro-batch {microbatch} is a {found}, and that of the example or "
                f"of a micro-batch before is a {before}; return the same kind for every batch"
            )
            raise LossError(msg)
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


class StepLoss(float):
    """The loss of one step: a number that every rank can read. Gradients are complete already.

    Args:
        report: of the step.
    """

    _report: LossReport

    def __new__(cls, report: LossReport) -> StepLoss:
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
        return f"StepLoss({float.__repr__(self)})"

    def __reduce__(self) -> tuple[type[StepLoss], tuple[LossReport]]:
        return StepLoss, (self._report,)


def gradient_seed(term: LossTerm, weight: float) -> Tensor:
    """Return the gradient that ``term.root`` is given in backward."""
    return torch.full_like(term.root, weight)
