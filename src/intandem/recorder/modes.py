"""Modes of this thread that a call runs under."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from intandem.recorder.graph import Autocast

if TYPE_CHECKING:
    from torch import nn


def autocast_state() -> tuple[Autocast, ...]:
    """Return the mixed-precision states that are on in this thread."""
    kinds = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    return tuple(
        Autocast(kind, enabled=True, dtype=torch.get_autocast_dtype(kind))
        for kind in kinds
        if torch.is_autocast_enabled(kind)
    )


def saved_tensors_are_hooked() -> bool:
    """How ``torch.utils.checkpoint(..., use_reentrant=False)`` shows."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def compiles(module: nn.Module) -> bool:
    """Its draws are the compiler's, which takes them from the default generators."""
    is_wrapper = "_orig_mod" in module._modules or "_orig_mod" in vars(module)
    return is_wrapper or module._compiled_call_impl is not None
