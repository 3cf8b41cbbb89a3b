"""Counts of a ``LossSum`` before the first backward, where gradients cannot be put right after it.

Gradients scaled by what the first micro-batch suggests are made right by one factor per step, since
backward is linear in the gradient that it begins with. What a user adds to it need not be: a hook
that clamps, a function whose backward gives an auxiliary loss a gradient of 1. There the counts
are asked for beforehand, of the loss function, given outputs of zeros: most counts (of labels,
of tokens) depend on the batch alone. Whether it is so shows when the step is over.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules import module as global_hooks

from intandem.errors import LossError
from intandem.recorder.graph import Ref
from intandem.recorder.python_state import python_generators_kept
from intandem.recorder.trees import map_tree
from intandem.runtime.losses import loss_term, summed
from intandem.runtime.stage import in_autocast

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from intandem.recorder.graph import Autocast
    from intandem.runtime.work import MicrobatchWork


def backward_is_linear(model: nn.Module, microbatches: Sequence[MicrobatchWork]) -> bool:
    """Tell whether backward is torch's alone, without hooks or functions of the user's."""
    if any(microbatch.recorded.graph.own_backward for microbatch in microbatches):
        return False
    tables = [global_hooks._global_backward_hooks, global_hooks._global_backward_pre_hooks]
    for module in model.modules():
        tables += [module._backward_hooks, module._backward_pre_hooks]
    for parameter in model.parameters():
        own = (parameter._backward_hooks, getattr(parameter, "_post_accumulate_grad_hooks", None))
        tables += [hooks for hooks in own if hooks]
    return not any(tables)


def foretold_count(
    microbatches: Sequence[MicrobatchWork],
    loss: Callable[[Any, Any], Any] | None,
    autocast: Sequence[Autocast],
) -> float | None:
    """Return what the counts of the micro-batches add up to if outputs do not matter to them.

    Returns:
        None if the loss function cannot be asked.
    """
    if loss is None:
        return None
    try:
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices=range(torch.cuda.device_count())),
            python_generators_kept(),
            in_autocast(autocast),
        ):
            terms = [loss_term(_zeros(m), m.batch, loss) for m in microbatches]
    except LossError:
        return None
    total = summed(float(term.count or 0.0) for term in terms)
    return total if math.isfinite(total) and total > 0 else None


def refuse_correction(correction: float) -> None:
    """Refuse gradients that a factor cannot put right.

    Args:
        correction: of the step; see ``LossReport``.

    Raises:
        LossError: if there is something to put right.
    """
    if correction in {0.0, 1.0}:
        return
    msg = (
        f"the gradients of this step are still to be multiplied by {correction:.6g}, since the "
        "counts of LossSum became known after the first backward, and backward is not torch's "
        "alone: a hook on a gradient, or a function with a backward of its own, has seen gradients "
        "that are off by this factor; remove it, or let micro-batches be weighed beforehand: a "
        "loss that returns the mean, and Pipeline(..., count=lambda batch: ...) with what it is a "
        "mean over"
    )
    raise LossError(msg)


def _zeros(microbatch: MicrobatchWork) -> Any:
    """Return an output of the shapes that the model gives, of zeros."""
    graph = microbatch.recorded.graph
    device = next((t.device for t in microbatch.tensors.values()), torch.device("cpu"))

    def zeros(leaf: Any) -> Any:
        if not isinstance(leaf, Ref):
            return leaf
        value = graph.values[leaf.value]
        return torch.zeros(value.shape, dtype=value.dtype, device=device)

    return map_tree(zeros, graph.output)
