"""Modes of this thread that a call runs under."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from intandem.errors import CaptureError
from intandem.recorder.graph import Autocast
from intandem.recorder.locations import user_place

if TYPE_CHECKING:
    from torch import nn


def autocast_state() -> tuple[Autocast, ...]:
    """Return the mixed-precision states that are on in this thread."""
    if not torch._C._is_any_autocast_enabled():
        return ()
    kinds = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    return tuple(
        Autocast(kind, enabled=True, dtype=torch.get_autocast_dtype(kind))
        for kind in kinds
        if torch.is_autocast_enabled(kind)
    )


def saved_tensors_are_hooked() -> bool:
    """How ``torch.utils.checkpoint(..., use_reentrant=False)`` shows."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


_HOOKS_THAT_KEEP_VALUES = ("torch.utils.checkpoint", "torch.autograd.graph")
"""Modules of functions that checkpointing and ``save_on_cpu`` have saved tensors shown to."""


class ModesOfRun:
    """Modes that a stage does not set again: all calls have to be in those a run begins with."""

    def __init__(self) -> None:
        self._default_dtype = torch.get_default_dtype()

    def check(self, call: str) -> None:
        """Refuse a call under another default dtype, or under hooks that may change gradients.

        Args:
            call: what is about to be called.

        Raises:
            CaptureError: naming the mode and the line.
        """
        dtype = torch.get_default_dtype()
        if dtype != self._default_dtype:
            msg = (
                f"forward calls {call} under the default dtype {dtype}, which it has set itself, "
                f"at {user_place()}; a stage computes under {self._default_dtype}: pass dtype= to "
                "the functions that make tensors, or keep the module around it whole (blocks=[...])"
            )
            raise CaptureError(msg)
        hooks: Any = torch._C._autograd._top_saved_tensors_default_hooks(False)
        if hooks is None:
            return
        if any(getattr(hook, "__module__", "") not in _HOOKS_THAT_KEEP_VALUES for hook in hooks):
            msg = (
                f"forward calls {call} under torch.autograd.graph.saved_tensors_hooks, at "
                f"{user_place()}, which a stage does not repeat and which may change gradients; "
                "use the hooks inside a block, or keep the module around it whole (blocks=[...])"
            )
            raise CaptureError(msg)


def compiles(module: nn.Module) -> bool:
    """Its draws are the compiler's, which takes them from the default generators."""
    is_wrapper = "_orig_mod" in module._modules or "_orig_mod" in vars(module)
    return is_wrapper or module._compiled_call_impl is not None
