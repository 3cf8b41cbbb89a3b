"""Run calls without data.

[Note: skeleton] A process that has freed other stages' parameters records again with what is left:
a call that meets a freed parameter runs on fake tensors, which have shapes and a device but no
data, while glue on the batch alone runs for real, so that guards have values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from intandem.errors import CaptureError
from intandem.recorder.trees import leaves, map_tree
from intandem.recorder.values import version_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_REMEDY = "give the pipeline an example with the shapes you train on"


class Skeleton:
    """Makes fake tensors of one recording.

    Args:
        device: that they claim to be on.
    """

    def __init__(self, device: torch.device) -> None:
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._device = device

    def run(
        self,
        name: str,
        proceed: Callable[..., Any],
        module: nn.Module | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Return what a call returns, with fake tensors for its tensors.

        Args:
            name: of the call, for errors.
            proceed: makes it.
            module: that is called, whose parameters and buffers are replaced too; or None.
            args: of the call.
            kwargs: of the call.

        Raises:
            CaptureError: if the call needs data, or writes to memory that has data.
        """
        fakes = map_tree(self._fake, (args, kwargs))
        try:
            output = self._proceed(proceed, module, *fakes)
        except (NotImplementedError, RuntimeError) as error:
            msg = (
                f"{name} cannot be run without data, which is needed to record a batch of "
                f"a new shape once other ranks' parameters are freed: {error}; {_REMEDY}"
            )
            raise CaptureError(msg) from error
        pairs = zip(leaves((args, kwargs)), leaves(fakes), strict=True)
        if any(fake is not leaf and version_of(fake) for leaf, fake in pairs):
            msg = (
                f"{name} writes in place to memory that was made with data, which cannot be "
                "recorded for a batch of a new shape once other ranks' parameters are freed; "
                f"{_REMEDY}"
            )
            raise CaptureError(msg)
        return output

    def _proceed(
        self,
        proceed: Callable[..., Any],
        module: nn.Module | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if module is None:
            return proceed(*args, **kwargs)
        named = [*module.named_parameters(), *module.named_buffers()]
        state = {name: self._fake(tensor) for name, tensor in named}
        return torch.func.functional_call(module, state, args, kwargs)

    def _fake(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or isinstance(leaf, FakeTensor):
            return leaf
        with self._mode:
            empty = torch.empty_strided(
                leaf.shape, leaf.stride(), dtype=leaf.dtype, device=self._device
            )
        return empty.requires_grad_(leaf.requires_grad)


def lacks_data(module: nn.Module | None, given: Sequence[Tensor]) -> bool:
    """Tell whether a call meets a freed parameter, or what was made without data."""
    if any(tensor.is_meta or isinstance(tensor, FakeTensor) for tensor in given):
        return True
    return module is not None and any(p.is_meta for p in module.parameters())
