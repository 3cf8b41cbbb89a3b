"""What is to be trained, as a value."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from intandem.recorder.trees import map_tree

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn


@dataclass(frozen=True, slots=True)
class Job:
    """What to train: a model, an example batch, and how its loss is computed.

    Attributes:
        model: any module.
        batch: one batch.
        loss: ``loss_fn(output, batch)``, or None when the model's output carries ``loss``.
    """

    model: nn.Module
    batch: Any
    loss: Callable[[Any, Any], Any] | None = None


def as_float64(job: Job) -> Job:
    """Return a copy of ``job`` whose floating-point numbers are float64."""

    def double(leaf: Any) -> Any:
        is_float = isinstance(leaf, Tensor) and leaf.is_floating_point()
        return leaf.double() if is_float else leaf

    return Job(copy.deepcopy(job.model).double(), map_tree(double, job.batch), job.loss)
