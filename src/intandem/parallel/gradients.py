"""The norm of all gradients, wherever they are held."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch

from intandem.runtime.transport.protocol import exchange

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from intandem.runtime.transport.protocol import Transport


def gradient_norms(parameters: Mapping[str, nn.Parameter]) -> dict[str, float]:
    """Return the 2-norm of every gradient there is, by parameter name."""
    return {
        name: float(torch.linalg.vector_norm(parameter.grad))
        for name, parameter in parameters.items()
        if parameter.grad is not None
    }


def total_norm(
    own: Mapping[str, float], order: Sequence[str], transport: Transport | None, key: str
) -> float:
    """Return the 2-norm over all ranks' parameters, added up in the model's order.

    Args:
        own: norms of the parameters that this process answers for.
        order: names of all parameters, in the model's order.
        transport: exchanges norms with the other processes; None if there are none.
        key: unique name of this exchange, the same on every rank.
    """
    norms = dict(own)
    if transport is not None:
        for fact in exchange(transport, key, json.dumps(own).encode()):
            norms.update(json.loads(fact))
    found = torch.tensor([norms[name] for name in order if name in norms], dtype=torch.float64)
    return float(torch.linalg.vector_norm(found)) if len(found) else 0.0


def clip_(parameters: Sequence[Tensor], norm: float, max_norm: float) -> None:
    """Scale gradients in place so that a total of ``norm`` becomes at most ``max_norm``."""
    scale = max_norm / (norm + 1e-6)
    if scale < 1:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(scale)
