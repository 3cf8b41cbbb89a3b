"""Hooks that a recording could not call as one process does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.modules import module as of_torch

from intandem.recorder import refusals
from intandem.recorder.graph import refs
from intandem.recorder.locations import user_place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from intandem.recorder.graph import Call


def refuse_backward_hooks(module: nn.Module, name: str) -> None:
    """Refuse hooks on the gradients of a module that is not kept whole.

    Its calls are spread over stages, and nothing would call the hooks.

    Raises:
        CaptureError: naming the module.
    """
    everywhere = of_torch._global_backward_hooks or of_torch._global_backward_pre_hooks
    if module._backward_hooks or module._backward_pre_hooks or everywhere:
        raise refusals.backward_hook(name)


def refuse_legacy_hooks(block: nn.Module, name: str) -> None:
    """Refuse hooks of ``register_backward_hook`` in a block.

    PyTorch hangs them on the last operation of the module, whose weights may be left for W, so that
    they would not see, and could not change, what they do in one process.

    Raises:
        CaptureError: naming the module.
    """
    for inner, module in block.named_modules():
        if module._backward_hooks and not module._is_full_backward_hook:
            raise refusals.legacy_backward_hook(".".join(filter(None, (name, inner))))


def refuse_late_hook(value: int | None, calls: Sequence[Call]) -> None:
    """Refuse ``h.register_hook`` once something has read ``h``.

    In one process the hook is shown the gradient of all readers together; a stage would show it
    that of the readers after the hook.

    Args:
        value: that is to be hooked, if its tensor is one of the recording.
        calls: recorded before it.

    Raises:
        CaptureError: naming the line.
    """
    if value is not None and any(value in refs(call.args, call.kwargs) for call in calls):
        raise refusals.late_hook(str(user_place()))
