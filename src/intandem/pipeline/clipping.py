"""Scales all ranks' gradients by one norm."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from torch import Tensor

from intandem.argument_types import require_number
from intandem.parallel.gradients import clip_, gradient_norms, total_norm

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from intandem.pipeline.assembly import Assembly
    from intandem.pipeline.exchange import Exchange
    from intandem.pipeline.scaling import PipelineGradScaler


def clip_gradients(
    max_norm: float | Tensor,
    named: Mapping[str, nn.Parameter],
    order: Sequence[str],
    assembly: Assembly,
    exchange: Exchange,
    scaler: PipelineGradScaler | None,
) -> float:
    """Clip; see ``Pipeline.clip_grad_norm_``.

    Args:
        max_norm: the largest norm to leave.
        named: this process's parameters.
        order: names of all parameters, in the model's order.
        assembly: knows who answers for which.
        exchange: with the other processes.
        scaler: of the gradients, if there is one.
    """
    number = max_norm.item() if isinstance(max_norm, Tensor) else max_norm
    require_number("max_norm", number)
    if not number >= 0:
        msg = f"max_norm={number}; expected 0 or more"
        raise ValueError(msg)
    if scaler is not None:
        scaler.check_unscaled("clip_grad_norm_()")
    own, holders = set(assembly.home.own_ranks), assembly.holders_of
    answered = {name: p for name, p in named.items() if holders[name][0] in own}
    own_norms = json.dumps(gradient_norms(answered)).encode()
    norms = map(json.loads, exchange.gather("clip_grad_norm_()", own_norms))
    norm = total_norm(norms, order)
    clip_(list(named.values()), norm, number)
    return norm
