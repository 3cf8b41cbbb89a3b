"""From a batch to micro-batches that weigh what they should."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from intandem.pipeline.counting import counting_in
from intandem.pipeline.materialise import lacks_parameters
from intandem.recorder.capture import left_as_it_was, record
from intandem.recorder.trees import leaves, map_tree, own_memory
from intandem.runtime.huggingface import (
    COUNT_NAME,
    Counting,
    counting_of,
    takes_token_count,
    with_counts,
)
from intandem.runtime.losses import carried_loss, loss_term
from intandem.runtime.microbatch import (
    Microbatches,
    check_split,
    plain_batch,
    split_batch,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from intandem.pipeline.facade import Pipeline
    from intandem.pipeline.request import Request
    from intandem.recorder import Arguments

_log = logging.getLogger(__name__)


class Batches:
    """Splits the batches of one pipeline.

    Args:
        request: says how.
        num_ranks: of the pipeline.
        example: tells whether the model is passed the number of labels in the whole batch.

    Attributes:
        num_microbatches: of a batch that has enough rows.

    Raises:
        BatchError: if the request says how to split what ``example`` does not have.
    """

    def __init__(self, request: Request, num_ranks: int, example: Any) -> None:
        check_split(example, request.split)
        self._request = request
        self.num_microbatches = request.num_microbatches(num_ranks)
        self._counting: Counting | None = None
        if request.loss is None and takes_token_count(request.model, example):
            self._counting = Counting.DIVIDES

    def split(self, batch: Any, device: torch.device | None) -> Microbatches:
        """Return the micro-batches of ``batch``, on ``device`` if one is given."""
        whole = plain_batch(batch)
        if device is not None:
            whole = map_tree(lambda x: _moved(x, device) if isinstance(x, Tensor) else x, whole)
        split = split_batch(whole, self.num_microbatches, self._request.split)
        counting = self._counting
        if counting is None or counting is Counting.IGNORES or "labels" not in split.parts[0]:
            return split
        shares = self._shares(split)
        counted = with_counts(self._request.model, split.parts, shares, counting)
        return Microbatches(counted, split.rows)

    def weights(self, parts: Microbatches) -> list[float]:
        """Return what each micro-batch's scalar loss is multiplied by."""
        if self._counting is Counting.DIVIDES:
            return [1.0] * len(parts.parts)
        return self._shares(parts)

    def _shares(self, parts: Microbatches) -> list[float]:
        counts: Sequence[float] = parts.rows
        if self._request.count is not None:
            counts = [float(self._request.count(part)) for part in parts.parts]
        total = sum(counts)
        return [count / total if total else 0.0 for count in counts]

    def find_counting(
        self, example: Any, device: torch.device | None, bind: Callable[[Any], Arguments]
    ) -> None:
        """See what the model does with the number of labels, by running a micro-batch twice."""
        if self._counting is None:
            return
        model, part = self._request.model, self.split(example, device).parts[0]
        if lacks_parameters(model):
            counted = {**part, COUNT_NAME: torch.tensor(8)}
            graph = record(model, counted, bind, blocks=self._request.blocks).graph
            self._counting = counting_in(graph, carried_loss(graph.output))
            self._warn_of_means()
            return

        def loss_given(count: int) -> float:
            arguments = bind(own_memory({**part, COUNT_NAME: torch.tensor(count)}))
            with left_as_it_was(model), torch.no_grad():
                torch.manual_seed(0)
                output = model(*arguments.args, **arguments.kwargs)
            return float(loss_term(output, part, None).root)

        self._counting = counting_of(loss_given)
        self._warn_of_means()

    def _warn_of_means(self) -> None:
        if self._counting is Counting.IGNORES:
            _log.warning(
                "%s does not look at the number of labels; its losses are taken for means over "
                "rows: give count=fn(batch) if they are means over something else",
                type(self._request.model).__name__,
            )


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Return it on ``device``; to a GPU without waiting for what that is still at, if possible.

    What the caller has pinned may be filled anew as soon as the call is over; it is waited for.
    """
    formats = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)
    is_dense = any(tensor.is_contiguous(memory_format=one) for one in formats)
    if device.type == "cuda" and tensor.is_cpu and is_dense and not tensor.is_pinned():
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def num_microbatches_of(pipe: Pipeline) -> int:
    """Return how many micro-batches a pipeline makes of a batch that has enough rows."""
    return pipe._batches.num_microbatches


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
