"""From a batch to micro-batches that weigh what they should."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from intandem.errors import BatchError
from intandem.recorder.trees import leaves, map_tree
from intandem.runtime.huggingface import takes_token_count, with_token_count
from intandem.runtime.microbatch import Microbatches, fingerprint, plain_batch, split_batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intandem.pipeline.exchange import Exchange
    from intandem.pipeline.request import Request

_log = logging.getLogger(__name__)


class Batches:
    """Splits the batches of one pipeline.

    Args:
        request: says how.
        num_ranks: of the pipeline.
        example: tells whether the model is passed the number of labels in the whole batch.
    """

    def __init__(self, request: Request, num_ranks: int, example: Any) -> None:
        self._request = request
        self._num_microbatches = request.num_microbatches(num_ranks)
        self._counts_tokens = request.loss is None and takes_token_count(request.model, example)

    def split(self, batch: Any, device: torch.device | None) -> Microbatches:
        """Return the micro-batches of ``batch``, on ``device`` if one is given."""
        whole = plain_batch(batch)
        if device is not None:
            whole = map_tree(lambda x: x.to(device) if isinstance(x, Tensor) else x, whole)
        if self._counts_tokens:
            whole = with_token_count(self._request.model, whole)
        return split_batch(whole, self._num_microbatches, self._request.split)

    def weights(self, parts: Microbatches) -> list[float]:
        """Return what each micro-batch's scalar loss is multiplied by."""
        if self._counts_tokens:
            return [1.0] * len(parts.parts)
        counts: Sequence[float] = parts.rows
        if self._request.count is not None:
            counts = [float(self._request.count(part)) for part in parts.parts]
        total = sum(counts)
        return [count / total if total else 0.0 for count in counts]

    def do_not_count_tokens(self) -> None:
        """The model was given the number of labels and did not look at it."""
        if self._counts_tokens:
            name = type(self._request.model).__name__
            _log.warning(
                "%s does not take the batch's number of labels; its losses are taken for means "
                "over rows: give count=fn(batch) if they are means over something else",
                name,
            )
            self._counts_tokens = False


def agree_on_batch(batch: Any, exchange: Exchange) -> None:
    """Compare the batch with rank 0's, which sends what all others work on.

    Raises:
        BatchError: if it differs.
    """
    own = fingerprint(batch).encode()
    first = exchange.first("batch", own)
    if first != own:
        msg = (
            f"rank {exchange.rank} has another batch than rank 0: {own.decode()}, not "
            f"{first.decode()}; give every rank the same batch (seed the loader alike)"
        )
        raise BatchError(msg)


def join_outputs(outputs: Sequence[Any]) -> Any:
    """Join micro-batches' outputs leaf by leaf, on dim 0; scalars are stacked.

    Leaves that are not tensors are the first micro-batch's.
    """
    columns = [iter(leaves(output)) for output in outputs]

    def join(leaf: Any) -> Any:
        parts = [next(column) for column in columns]
        if isinstance(leaf, Tensor):
            return torch.cat(parts) if leaf.dim() else torch.stack(parts)
        return leaf

    return map_tree(join, outputs[0])
