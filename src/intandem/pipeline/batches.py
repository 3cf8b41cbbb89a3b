"""From a batch to micro-batches that weigh what they should."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from intandem.errors import BatchError
from intandem.recorder.graph import CallKind, refs
from intandem.recorder.trees import leaves, map_tree
from intandem.runtime.huggingface import COUNT_NAME, takes_token_count, with_shares
from intandem.runtime.microbatch import (
    Microbatches,
    check_split,
    fingerprint,
    plain_batch,
    split_batch,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intandem.pipeline.exchange import Exchange
    from intandem.pipeline.request import Request
    from intandem.recorder import Graph

_log = logging.getLogger(__name__)


class Batches:
    """Splits the batches of one pipeline.

    Args:
        request: says how.
        num_ranks: of the pipeline.
        example: tells whether the model is passed the number of labels in the whole batch.

    Raises:
        BatchError: if the request says how to split what ``example`` does not have.
    """

    def __init__(self, request: Request, num_ranks: int, example: Any) -> None:
        check_split(example, request.split)
        self._request = request
        self._num_microbatches = request.num_microbatches(num_ranks)
        self._counts_tokens = request.loss is None and takes_token_count(request.model, example)

    def split(self, batch: Any, device: torch.device | None) -> Microbatches:
        """Return the micro-batches of ``batch``, on ``device`` if one is given."""
        whole = plain_batch(batch)
        if device is not None:
            whole = map_tree(lambda x: x.to(device) if isinstance(x, Tensor) else x, whole)
        split = split_batch(whole, self._num_microbatches, self._request.split)
        if not self._counts_tokens or "labels" not in split.parts[0]:
            return split
        shares = with_shares(self._request.model, split.parts, self.weights(split))
        return Microbatches(shares, split.rows)

    def weights(self, parts: Microbatches) -> list[float]:
        """Return what each micro-batch's scalar loss is multiplied by."""
        counts: Sequence[float] = parts.rows
        if self._request.count is not None:
            counts = [float(self._request.count(part)) for part in parts.parts]
        total = sum(counts)
        return [count / total if total else 0.0 for count in counts]

    def warn_unless_counted(self, graph: Graph) -> None:
        """Say so if the model takes the number of labels and does not look at it."""
        if self._counts_tokens and not reads_token_count(graph):
            name = type(self._request.model).__name__
            _log.warning(
                "%s does not look at the number of labels; its losses are taken for means over "
                "rows: give count=fn(batch) if they are means over something else",
                name,
            )


def reads_token_count(graph: Graph) -> bool:
    """Tell whether glue computes with the token count; blocks are given it by habit."""
    if COUNT_NAME not in graph.inputs:
        return False
    value = graph.inputs.index(COUNT_NAME)
    glue = (call for call in graph.calls if call.kind is not CallKind.BLOCK)
    return any(value in refs(call.args, call.kwargs) for call in glue)


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
