"""What is to be trained, and in how many parts, as values."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from intandem.equality.comparison import TOLERANCE
from intandem.pipeline.request import auto_schedule
from intandem.recorder.trees import map_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from intandem.equality.updates import OptimizerFactory
    from intandem.equality.witness import Splitting
    from intandem.ir import Schedule


@dataclass(frozen=True, slots=True)
class Job:
    """What to train: a model, an example batch, how its loss is computed, what updates it.

    Attributes:
        model: any module.
        batch: one batch.
        loss: ``loss_fn(output, batch)``, or None when the model's output carries ``loss``.
        optimizer: makes the optimizer of the parameters it is given, in the model's order; by
            default plain SGD, which keeps errors as they are.
    """

    model: nn.Module
    batch: Any
    loss: Callable[[Any, Any], Any] | None = None
    optimizer: OptimizerFactory | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """How a job is run in tandem, and up to which error it counts as equal.

    Attributes:
        ranks: of the pipeline.
        splitting: of the batch.
        schedule: as for ``Pipeline``.
        recompute: as for ``Pipeline``.
        seed: keys random draws.
        tolerance: up to which numbers count as equal.
        more: further arguments of ``Pipeline``.
    """

    ranks: int
    splitting: Splitting
    schedule: str | Schedule = "auto"
    recompute: str | bool = "auto"
    seed: int = 0
    tolerance: float = TOLERANCE
    more: Mapping[str, Any] = field(default_factory=dict)

    def schedule_name(self, loss: object) -> str:
        """Return what the schedule is called, for a loss."""
        if not isinstance(self.schedule, str):
            return self.schedule.name
        return auto_schedule(loss) if self.schedule == "auto" else self.schedule


def as_float64(job: Job) -> Job:
    """Return a copy of ``job`` whose floating-point numbers are float64."""

    def double(leaf: Any) -> Any:
        is_float = isinstance(leaf, Tensor) and leaf.is_floating_point()
        return leaf.double() if is_float else leaf

    model = copy.deepcopy(job.model).double()
    return replace(job, model=model, batch=map_tree(double, job.batch))
