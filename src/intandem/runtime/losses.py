"""What a loss is: what the user's function, or the model's output, may give.

A scalar is a mean over rows, a ``LossSum`` is to be divided by its count over all micro-batches
(``runtime.tally``). A ``WholeBatchLoss`` sees all micro-batches at once (``runtime.whole_batch``).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intandem.errors import LossError, PipelineError
from intandem.recorder.stage_chain import entry_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

_UNKEYED: AbstractContextManager[Any] = nullcontext()

_OF_TORCH = frozenset(
    getattr(F, name)
    for name in (
        "binary_cross_entropy", "binary_cross_entropy_with_logits", "cross_entropy", "huber_loss",
        "kl_div", "l1_loss", "mse_loss", "nll_loss", "smooth_l1_loss",
    )
)  # fmt: skip
"""Losses that draw no random numbers."""


@dataclass(frozen=True, slots=True)
class LossSum:
    """A loss that is a sum over counted things (tokens), to be divided by the batch's count.

    Attributes:
        sum: scalar tensor.
        count: how many things were summed; a number or a scalar tensor. May be 0.
    """

    sum: Tensor
    count: int | float | Tensor


@dataclass(frozen=True)
class WholeBatchLoss:
    """A loss that rows of different micro-batches have in common, such as a contrastive one.

    It is computed once per step, when every micro-batch has been forwarded, so the gradient is the
    whole batch's. Outputs are joined on dim 0; those whose shape does not depend on the number of
    rows (a learned temperature) must be the same in every micro-batch.

    Args:
        function: ``loss_fn(output, batch)`` of the whole batch, as for ``Pipeline``.

    Raises:
        TypeError: if it is no function.
    """

    function: Callable[[Any, Any], Any]

    def __post_init__(self) -> None:
        function: object = self.function
        if not callable(function):
            msg = f"WholeBatchLoss of a {type(function).__name__}; expected a function"
            raise TypeError(msg)

    def __call__(self, output: Any, batch: Any) -> Any:
        """Return the loss of a whole batch."""
        return self.function(output, batch)


@dataclass(frozen=True, slots=True)
class LossTerm:
    """One micro-batch's loss, or one of its metrics, and what it counts for.

    Attributes:
        root: scalar tensor; of a loss, what to differentiate.
        count: of its LossSum, or None for a mean over rows. A scalar tensor where it is on a GPU,
            whose host would wait to read it.
        metrics: what the loss function returned besides, detached, by name.
    """

    root: Tensor
    count: float | Tensor | None
    metrics: Mapping[str, LossTerm] = field(default_factory=dict)


def summed(values: Iterable[float]) -> float:
    """Return the sum, rounded once; beyond all floats infinity or NaN, as in one process."""
    known = tuple(values)
    try:
        return math.fsum(known)
    except (OverflowError, ValueError):  # finite values too large together; inf and -inf
        return sum(known)


def loss_term(
    output: Any,
    microbatch: Any,
    loss: Callable[[Any, Any], Any] | None,
    random: AbstractContextManager[Any] = _UNKEYED,
) -> LossTerm:
    """Return the loss of one micro-batch.

    Args:
        output: what the model returned.
        microbatch: what it was given.
        loss: the user's function, or None when the output carries the loss.
        random: what the function draws under.

    Raises:
        LossError: if there is none, it is not a scalar, or the user's function raises.
    """
    if loss is None:
        return _term(carried_loss(output), "the loss")
    with random:
        found = _called(loss, output, microbatch)
    if not isinstance(found, Mapping):
        return _term(found, "the loss")
    if "loss" not in found:
        msg = (
            f"loss(output, batch) returned a mapping with {_listed(found)} and no 'loss'; call "
            "what is to be differentiated 'loss', and the rest are metrics"
        )
        raise LossError(msg)
    metrics = {name: _metric(name, value) for name, value in found.items() if name != "loss"}
    term = _term(found["loss"], "the loss")
    return LossTerm(term.root, term.count, metrics)


def _term(found: Any, what: str) -> LossTerm:
    if isinstance(found, LossSum):
        _check_scalar(found.sum, "LossSum.sum" if what == "the loss" else f"LossSum.sum of {what}")
        return LossTerm(found.sum, _count(found.count))
    _check_scalar(found, what)
    return LossTerm(found, None)


def _count(found: int | float | Tensor) -> float | Tensor:
    if isinstance(found, Tensor) and found.is_cuda:
        return found.detach().reshape(()).to(torch.float64, copy=True)  # theirs may change
    return float(found)


def _metric(name: object, found: Any) -> LossTerm:
    if not isinstance(name, str):
        msg = f"a metric is called {name!r}, a {type(name).__name__}; expected a str"
        raise LossError(msg)
    is_sum = isinstance(found, LossSum)
    number = found.sum if is_sum else found
    if not isinstance(number, Tensor) and isinstance(number, int | float):
        number = torch.tensor(number, dtype=torch.float64)
    if isinstance(number, Tensor):
        number = number.detach().clone()
        number = number if number.is_floating_point() else number.double()
    return _term(LossSum(number, found.count) if is_sum else number, f"metric {name!r}")


def _listed(names: Mapping[Any, Any]) -> str:
    return ", ".join(map(repr, names)) or "nothing"


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


def refuse_trained_loss(loss: object) -> None:
    """Refuse a loss module with parameters: nobody would hold, clip or step them.

    Raises:
        LossError: naming them.
    """
    loss = function_of(loss)
    if isinstance(loss, nn.Module):
        names = [name for name, p in loss.named_parameters() if p.requires_grad]
        if names:
            msg = (
                f"the loss has parameters of its own ({', '.join(names[:4])}), which a pipeline "
                "does not hold; make it part of the model, whose output can carry `loss`"
            )
            raise LossError(msg)


def function_of(loss: object) -> object:
    """Return what is called for a loss: of the whole batch, the function inside."""
    return loss.function if isinstance(loss, WholeBatchLoss) else loss


def draws_nothing(loss: object) -> bool:
    """Tell whether a loss is known not to draw random numbers, before it is called."""
    function = function_of(loss)
    return isinstance(function, FunctionType) and function in _OF_TORCH


def carried_loss(output: Any) -> Any:
    """Return the loss that a model's output carries.

    Raises:
        LossError: if it carries none.
    """
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


def gradient_seed(term: LossTerm, weight: float | Tensor) -> Tensor:
    """Return the gradient that ``term.root`` is given in backward."""
    if isinstance(weight, Tensor):
        return weight.to(term.root).expand_as(term.root)
    return torch.full_like(term.root, weight)
