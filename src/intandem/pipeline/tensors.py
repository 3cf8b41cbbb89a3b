"""Putting other tensors in the place of a model's registered ones."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from intandem.checkpoint.tensors import registered
from intandem.errors import CaptureError, RunError
from intandem.recorder.trees import leaves

if TYPE_CHECKING:
    from collections.abc import Collection

    from intandem.checkpoint.tensors import Registered


class Allocated(NamedTuple):
    """An empty tensor that was put in the place of one on ``meta``, and the memory it had then."""

    tensor: Tensor
    storage: int

    def is_unset(self, now: Tensor, written: Collection[int]) -> bool:
        """Tell whether ``now``, which is in its place, is still as empty as it was.

        Args:
            now: what the model has under its name.
            written: memory that has been written to.
        """
        if now is not self.tensor or storage_key(now) != self.storage or not now.numel():
            return False
        return self.storage not in written


def storage_key(tensor: Tensor) -> int:
    """Return what tells the memory of ``tensor`` from other tensors' while both exist."""
    return int(tensor.untyped_storage()._cdata)


def allocate(
    model: nn.Module, names: Collection[str], device: torch.device
) -> dict[str, Allocated]:
    """Put empty tensors on ``device`` in place of the named ones that are on ``meta``.

    Tied weights stay tied, and keep dtype, ``requires_grad`` and attributes. Parameters stay the
    same objects, so that an optimizer that has them trains them; where that cannot be, its step
    raises. Floating-point tensors are full of NaN, so that what is left out shows.

    Args:
        model: changed in place.
        names: first names, as ``registered`` gives them.
        device: of the new tensors.

    Returns:
        The new tensors, by first name.

    Raises:
        CaptureError: if a parameter has hooks, which would be lost.
    """
    wanted = set(names)
    made: dict[str, Allocated] = {}
    for name, one in registered(model).items():
        if name in wanted and one.tensor.is_meta:
            put = _put(model, one, _empty_like(name, one.tensor, device))
            made[name] = Allocated(put, storage_key(put))
    return made


def refuse_loose(model: nn.Module) -> None:
    """Refuse tensors on ``meta`` that modules keep in plain attributes: nothing would fill them.

    Raises:
        CaptureError: naming one.
    """
    known = {id(one.tensor) for one in registered(model).values()}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key in {"_parameters", "_buffers", "_modules"}:
                continue
            loose = (leaf for leaf in leaves(value) if isinstance(leaf, Tensor) and leaf.is_meta)
            if any(id(leaf) not in known for leaf in loose):
                msg = (
                    f"{name or type(module).__name__}.{key} is a tensor on the meta device in a "
                    "plain attribute, which nothing can give data; register it as a buffer or "
                    "parameter, and use that one"
                )
                raise CaptureError(msg)


def _empty_like(name: str, tensor: Tensor, device: torch.device) -> Tensor:
    empty = torch.empty_like(tensor.detach(), device=device)
    if empty.is_floating_point() or empty.is_complex():
        empty.fill_(torch.nan)
    if not isinstance(tensor, nn.Parameter):
        return empty
    if tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None):
        msg = (
            f"{name} is on the meta device and has a gradient hook, which its tensor with data "
            "would not have; register hooks after the pipeline is built"
        )
        raise CaptureError(msg)
    parameter = nn.Parameter(empty, tensor.requires_grad)
    vars(parameter).update(vars(tensor))
    return parameter


def _put(model: nn.Module, old: Registered, new: Tensor) -> Tensor:
    """Put ``new`` in the place of ``old``, and return the tensor that is now there."""
    if old.is_parameter and _swapped(old.tensor, new):
        return old.tensor
    for name in old.names:
        path, _, key = name.rpartition(".")
        setattr(model.get_submodule(path), key, new)
    if old.is_parameter:
        _refuse_steps_of(old.tensor, old.names[0])
    return new


def _swapped(old: Tensor, new: Tensor) -> bool:
    """Exchange what two tensors are; tell whether torch could: not if ``old`` is held weakly."""
    try:
        torch.utils.swap_tensors(old, new)  # type: ignore[no-untyped-call]
    except RuntimeError:
        return False
    return True


def _refuse_steps_of(left: Tensor, name: str) -> None:
    """Let every optimizer that holds ``left``, a parameter that no model has, refuse to step."""
    held = weakref.ref(left)

    def refuse(optimizer: Optimizer, *_: object) -> None:
        stale = held()
        if any(p is stale for group in optimizer.param_groups for p in group["params"]):
            msg = (
                f"the optimizer was made before the pipeline and holds {name} without data; make "
                "it from pipe.parameters() after the pipeline is built"
            )
            raise RunError(msg)

    weakref.finalize(left, register_optimizer_step_pre_hook(refuse).remove)
