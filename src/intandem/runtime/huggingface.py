"""Token counts for Hugging Face models, which take the whole batch's count as an argument."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch import nn

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


def with_token_count(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``batch`` with the number of labels that its loss is a mean over, as a tensor."""
    labels = batch["labels"]
    name = getattr(getattr(model, "loss_function", None), "__name__", "")
    if name == "ForCausalLMLoss":  # the first token has nothing to be predicted from
        labels = labels[..., 1:]
    count = (labels != IGNORED_LABEL).sum().clamp(min=1)
    return {**batch, COUNT_NAME: count.to(torch.int64)}
