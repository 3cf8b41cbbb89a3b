"""Token counts for Hugging Face models, whose loss takes the count to divide by as an argument.

Whether a model looks at the count shows in what it does: given twice the count, a loss that is a
sum divided by it is halved, and a loss that is a mean of its own stays. A loss with both in it
(experts' balance) is between: [Note: a share of the count] micro-batch i is then given N * w of the
whole batch's N labels and its loss is weighed by w, so that the sum comes out divided by N and the
mean weighed by w.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn


class Counting(Enum):
    """What a model does with the number of labels in the whole batch."""

    DIVIDES = "its loss is a sum divided by it"
    IGNORES = "it does not look at it"
    MIXES = "part of its loss is divided by it"


COUNT_NAME = "num_items_in_batch"
IGNORED_LABEL = -100


def takes_token_count(model: nn.Module, batch: Any) -> bool:
    """Tell whether ``model`` computes its own loss from ``batch`` and takes a count for it."""
    if not isinstance(batch, Mapping) or not isinstance(batch.get("labels"), Tensor):
        return False
    if COUNT_NAME in batch or batch["labels"].is_floating_point():
        return False
    loss = getattr(model, "loss_function", None)
    if loss is None or COUNT_NAME not in inspect.signature(loss).parameters:
        return False
    parameters = inspect.signature(model.forward).parameters.values()
    return any(p.kind is p.VAR_KEYWORD or p.name == COUNT_NAME for p in parameters)


def count_labels(model: nn.Module, batch: Mapping[str, Any]) -> int:
    """Return over how many labels of ``batch`` the loss of ``model`` is a mean."""
    labels = batch["labels"]
    name = getattr(getattr(model, "loss_function", None), "__name__", "")
    if name == "ForCausalLMLoss":  # the first token has nothing to be predicted from
        labels = labels[..., 1:]
    return int((labels != IGNORED_LABEL).sum())


def counting_of(loss_given: Callable[[int], float]) -> Counting:
    """Tell what a model does with the count.

    Args:
        loss_given: returns the loss of one and the same micro-batch for a count. Halves and wholes
            are exact in floating point.
    """
    one, two = loss_given(8), loss_given(16)
    if one == two:
        return Counting.IGNORES
    return Counting.DIVIDES if one == 2 * two else Counting.MIXES


def with_counts(
    model: nn.Module,
    parts: Sequence[Mapping[str, Any]],
    weights: Sequence[float],
    counting: Counting,
) -> tuple[dict[str, Any], ...]:
    """Return micro-batches that carry the count that their loss is to be divided by.

    Args:
        model: counts as its loss does.
        parts: micro-batches with ``labels``.
        weights: what each one's loss is multiplied by if it is a mean.
        counting: what the model does with the count.
    """
    total = max(sum(count_labels(model, part) for part in parts), 1)
    if counting is Counting.MIXES:
        # bfloat16 would round a count to 8 bits
        dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)
        numbers = [torch.tensor(total * (weight or 1.0), dtype=dtype) for weight in weights]
    else:  # a whole number does not promote the loss to another dtype
        numbers = [torch.tensor(total)] * len(parts)
    return tuple(
        {**part, COUNT_NAME: number.to(part["labels"].device)}
        for part, number in zip(parts, numbers, strict=True)
    )
