"""The numbers of one step, and how far two sets of them are apart."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

TOLERANCE = 1e-12
"""Largest relative error of float64 numbers that are equal but for the order of sums."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """What one step gives.

    Attributes:
        loss: of the whole batch.
        gradients: by the user's parameter names; None where there is none.
        buffers: after the step, by name.
    """

    loss: float
    gradients: dict[str, Tensor | None]
    buffers: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Equality:
    """How far a pipeline's numbers are from one process's.

    Attributes:
        loss: one process's.
        loss_error: relative.
        gradient_errors: by parameter, relative in norm: |g - g*| / max(|g*|, 1e-3 |all g*|).
        buffer_errors: by buffer, relative in norm.
        tolerance: up to which they count as equal.
    """

    loss: float
    loss_error: float
    gradient_errors: dict[str, float] = field(default_factory=dict)
    buffer_errors: dict[str, float] = field(default_factory=dict)
    tolerance: float = TOLERANCE

    @property
    def max_gradient_error(self) -> float:
        """Error of the worst parameter."""
        return max(self.gradient_errors.values(), default=0.0)

    @property
    def max_buffer_error(self) -> float:
        """Error of the worst buffer."""
        return max(self.buffer_errors.values(), default=0.0)

    @property
    def equal(self) -> bool:
        """Whether everything is within the tolerance."""
        errors = (self.loss_error, self.max_gradient_error, self.max_buffer_error)
        return all(error <= self.tolerance for error in errors)

    def worst(self, count: int = 5) -> list[tuple[str, float]]:
        """Return names and errors of the worst gradients and buffers, worst first."""
        found = [*self.gradient_errors.items(), *self.buffer_errors.items()]
        return sorted(found, key=lambda item: -item[1])[:count]


def numbers_of(model: nn.Module, loss: float) -> Numbers:
    """Collect gradients and buffers of ``model`` as they are."""
    gradients = {
        name: None if parameter.grad is None else parameter.grad.detach().clone()
        for name, parameter in model.named_parameters()
    }
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    return Numbers(loss, gradients, buffers)


def compare(found: Numbers, expected: Numbers, *, tolerance: float = TOLERANCE) -> Equality:
    """Return how far ``found`` is from ``expected``."""
    floor = 1e-3 * _total_norm(expected.gradients)
    scale = max(abs(expected.loss), torch.finfo(torch.float64).tiny)
    return Equality(
        loss=expected.loss,
        loss_error=_finite(abs(found.loss - expected.loss) / scale),
        gradient_errors={
            name: _error(found.gradients.get(name), gradient, floor)
            for name, gradient in expected.gradients.items()
        },
        buffer_errors={
            name: _error(found.buffers.get(name), buffer, 0.0)
            for name, buffer in expected.buffers.items()
        },
        tolerance=tolerance,
    )


def _error(found: Tensor | None, expected: Tensor | None, floor: float) -> float:
    if expected is None or found is None:
        return 0.0 if found is None and expected is None else float("inf")
    norm = float(torch.linalg.vector_norm(expected.double()))
    difference = float(torch.linalg.vector_norm(found.double() - expected.double()))
    scale = max(norm, floor)
    error = difference / scale if scale > 0 else difference
    return _finite(error)


def _finite(error: float) -> float:
    """Return infinity for what is not a number, so that nothing compares as equal to it."""
    return error if math.isfinite(error) else math.inf


def _total_norm(gradients: Mapping[str, Tensor | None]) -> float:
    squares = [
        float(torch.linalg.vector_norm(gradient.double())) ** 2
        for gradient in gradients.values()
        if gradient is not None
    ]
    return float(sum(squares) ** 0.5)
