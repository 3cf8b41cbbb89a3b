"""The model's outputs of one step: every tensor by its path, micro-batches one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from intandem.recorder.trees import map_tree, named_leaves

if TYPE_CHECKING:
    from collections.abc import Mapping


def joined(outputs: Mapping[int, Any], *, carries_loss: bool) -> dict[str, Tensor]:
    """Return the tensors of all micro-batches' outputs, flattened and joined, by path.

    Args:
        outputs: by micro-batch.
        carries_loss: whether the loss is among them; it is compared as the loss, weighed.
    """
    columns: dict[str, list[Tensor]] = {}
    for index in sorted(outputs):
        for name, leaf in _tensors(outputs[index]):
            is_loss = leaf.dim() == 0 and name in {"loss", "output"}
            if not (carries_loss and is_loss):
                columns.setdefault(name, []).append(leaf.reshape(-1))
    return {name: torch.cat(parts) for name, parts in columns.items()}


def snapshot(output: Any) -> Any:
    """Return a copy of an output as it is now, without its autograd graph."""
    return map_tree(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, output)


def _tensors(output: Any) -> list[tuple[str, Tensor]]:
    if isinstance(output, Tensor):
        return [("output", output)]
    return [(name, leaf) for name, leaf in named_leaves(output) if isinstance(leaf, Tensor)]
