"""Tensors with numbers, for one call that has to see some, in place of those without."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from intandem.recorder.values import version_of

if TYPE_CHECKING:
    from collections.abc import Callable


class Zeros:
    """Stand-ins of one call: copies of tensors with data, zeros for the others.

    Args:
        device: of the stand-ins.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._made: dict[int, tuple[Tensor, Tensor, int]] = {}

    def instead_of(self, leaf: Any) -> Any:
        """Return what stands for a tensor, the same one each time."""
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) not in self._made:
            made = self._new(leaf).requires_grad_(leaf.requires_grad)
            if leaf.requires_grad and not leaf.is_leaf:
                made = made.view_as(made)  # may be written to in place, as what it stands for
            self._made[id(leaf)] = (leaf, made, version_of(made))
        return self._made[id(leaf)][1]

    def originals(self) -> dict[int, Tensor]:
        """Return what each stand-in stands for, by the stand-in's id."""
        return {id(made): leaf for leaf, made, _ in self._made.values()}

    def written(self) -> list[Tensor]:
        """Return the tensors whose stand-ins were written to."""
        return [leaf for leaf, made, before in self._made.values() if version_of(made) != before]

    def replaced(self, now: Any, leaf: Tensor) -> bool:
        """Tell whether ``now`` is another tensor than what was put in the place of ``leaf``."""
        return now is not leaf and now is not self._made[id(leaf)][1]

    def original(self, leaf: Any, empty: Callable[[Tensor], Tensor]) -> Any:
        """Return what ``leaf``, which a call returned, is without its numbers.

        Args:
            leaf: a stand-in; a tensor made in the call; or no tensor.
            empty: makes a tensor without data of the same shape.
        """
        if not isinstance(leaf, Tensor):
            return leaf
        for source, made, _ in self._made.values():
            if made is leaf:
                return source
            shares = made.untyped_storage()._cdata == leaf.untyped_storage()._cdata
            if shares and isinstance(source, FakeTensor):
                return source.as_strided(leaf.shape, leaf.stride(), leaf.storage_offset())
        return empty(leaf)

    def _new(self, leaf: Tensor) -> Tensor:
        if isinstance(leaf, FakeTensor) or leaf.is_meta:
            return torch.zeros(leaf.shape, dtype=leaf.dtype, device=self._device)
        return leaf.detach().clone()
