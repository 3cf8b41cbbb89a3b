"""The witness of a loss of the whole batch: micro-batches' forwards joined, one backward."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from intandem.recorder import Site
from intandem.recorder.trees import leaves, map_tree
from intandem.runtime.losses import loss_term
from intandem.runtime.randomness import draw_key
from intandem.runtime.whole_batch import join_batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intandem.runtime.losses import WholeBatchLoss
    from intandem.runtime.microbatch import Microbatches, Split


def whole_batch_loss(
    outputs: Sequence[Any],
    parts: Microbatches,
    loss: WholeBatchLoss,
    split: Split | None,
    key: tuple[int, int],
) -> Tensor:
    """Join outputs, with their graphs, and return their loss.

    Args:
        outputs: the model's, of each micro-batch, with their graphs.
        parts: the micro-batches.
        loss: of the whole batch.
        split: as for ``Pipeline``.
        key: seed of the run and number of the step, for draws of the loss.
    """
    batch = join_batch(parts.parts, split)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(draw_key(*key, 0, Site("loss", 0)))
        term = loss_term(_joined(outputs, parts.rows), batch, loss)
    count = 1.0 if term.count is None else term.count
    return term.root / count if count else term.root * 0.0


def _joined(outputs: Sequence[Any], rows: Sequence[int]) -> Any:
    columns = zip(*(leaves(output) for output in outputs), strict=True)

    def join(first: Any) -> Any:
        parts = next(columns)
        if not isinstance(first, Tensor) or first.dim() == 0:
            return first
        have_rows = all(len(p) % count == 0 for p, count in zip(parts, rows, strict=True))
        is_constant = len(parts) > 1 and all(_equal(first, part) for part in parts)
        return torch.cat(parts) if have_rows and not is_constant else first

    return map_tree(join, outputs[0])


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)
