"""One step of training, and one validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from intandem.pipeline.exchange import doing
from intandem.recorder.trees import tensors_in
from intandem.runtime.watch import OPTIMIZER
from intandem.train.data.iterator import next_batch
from intandem.train.learning_rate import factor
from intandem.train.optimizers import set_learning_rate

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from intandem.runtime.loss_report import PromisedLoss, StepLoss
    from intandem.train.setup import Parts


@dataclass(frozen=True, slots=True)
class Trained:
    """A step that was begun; ranks may still be at it.

    Attributes:
        losses: of its batches.
        rate: learning rate.
        grad_norm: before clipping; None where gradients are not clipped.
        num_units: trained on.
    """

    losses: tuple[StepLoss | PromisedLoss, ...]
    rate: float
    grad_norm: float | None
    num_units: int

    def numbers(self) -> dict[str, float]:
        """Wait for the loss; return it and the loss function's metrics, means over batches.

        Raises:
            NonFiniteLossError: if a micro-batch's loss is NaN or infinite.
        """
        return weighed(({**loss.metrics, "loss": loss.item()}, 1) for loss in self.losses)


def train_step(parts: Parts, step: int) -> Trained:
    """Train step ``step``, counted from 0, on the next batches. Collective.

    Raises:
        NonFiniteLossError: if a micro-batch's loss, of this step or of the one before, is NaN or
            infinite.
        PipelineError: if a rank failed, or the data have ended.
    """
    config = parts.config
    rate = config.optimizer.lr * factor(config.learning_rate, step, config.steps)
    set_learning_rate(parts.optimizer, rate)
    losses, num_rows = [], 0
    for _ in range(config.accumulate):
        batch = next_batch(parts.batches, step=step, num_steps=config.steps)
        with parts.precision():
            losses.append(parts.pipe.step(batch))
        num_rows += _num_rows(batch)
    norm = _update(parts)
    return Trained(tuple(losses), rate, norm, num_rows * parts.data.units_per_row)


def validate(parts: Parts) -> dict[str, float]:
    """Return the loss, and what the loss function returned besides, on what is held out."""
    found: list[tuple[Mapping[str, float], int]] = []
    for batch, num_rows in parts.validation:
        with parts.precision():
            loss = parts.pipe.evaluate(batch)
        found.append(({**loss.metrics, "loss": loss.item()}, num_rows))
    return {f"validation_{name}": number for name, number in weighed(found).items()}


def weighed(found: Iterable[tuple[Mapping[str, float], int]]) -> dict[str, float]:
    """Return the means of numbers by name, each with its weight."""
    sums: dict[str, float] = {}
    total = 0
    for numbers, weight in found:
        total += weight
        for name, number in numbers.items():
            sums[name] = sums.get(name, 0.0) + number * weight
    return {name: number / total for name, number in sums.items()}


def _update(parts: Parts) -> float | None:
    """Change the parameters by the gradients that are there; return their norm if it is known."""
    config, optimizer, scaler = parts.config, parts.optimizer, parts.scaler
    if scaler is not None:
        scaler.unscale_(optimizer)
    if config.accumulate > 1:
        for parameter in parts.pipe.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(config.accumulate)
    norm = parts.pipe.clip_grad_norm_(config.clip) if config.clip else None
    with doing(parts.pipe, OPTIMIZER):
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad()
    return norm


def _num_rows(batch: Any) -> int:
    """Rows of a batch: dim 0 of its first tensor that has one, or the sum over micro-batches."""
    if isinstance(batch, list):
        return sum(map(_num_rows, batch))
    return next((len(tensor) for tensor in tensors_in(batch) if tensor.ndim), 1)
