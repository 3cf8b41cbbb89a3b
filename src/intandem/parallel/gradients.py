"""The norm of all gradients, wherever they are held."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor, nn


def gradient_norms(parameters: Mapping[str, nn.Parameter]) -> dict[str, float]:
    """Return the 2-norm of every gradient there is, by parameter name."""
    return {
        name: float(torch.linalg.vector_norm(parameter.grad))
        for name, parameter in parameters.items()
        if parameter.grad is not None
    }


def total_norm(norms_of_ranks: Iterable[Mapping[str, float]], order: Sequence[str]) -> float:
    """Return the 2-norm over all gradients, added up in the model's order.

    Args:
        norms_of_ranks: norms that each process answers for, by parameter name.
        order: names of all parameters, in the model's order.
    """
    norms: dict[str, float] = {}
    for found in norms_of_ranks:
        norms.update(found)
    ordered = torch.tensor([norms[name] for name in order if name in norms], dtype=torch.float64)
    return float(torch.linalg.vector_norm(ordered)) if len(ordered) else 0.0


def clip_(parameters: Sequence[Tensor], norm: float, max_norm: float) -> None:
    """Scale gradients in place so that a total of ``norm`` becomes at most ``max_norm``."""
    scale = max_norm / (norm + 1e-6)
    if scale < 1:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(scale)


def add_scaled_(
    parameters: Iterable[Tensor], earlier: Sequence[Tensor | None], factor: float
) -> None:
    """Multiply gradients by ``factor`` and add them to those of earlier steps, in place.

    Args:
        parameters: with the gradients of one step.
        earlier: gradients from before that step, one per parameter.
        factor: to scale this step's by.
    """
    for parameter, before in zip(parameters, earlier, strict=True):
        gradient = parameter.grad
        if gradient is not None and factor != 1:
            gradient.mul_(factor)
        if before is not None:
            parameter.grad = before if gradient is None else before.add_(gradient)
