"""One process's numbers: the user's own module with plain PyTorch.

The witness runs forward and ``backward`` per micro-batch. It shares with the pipeline how a batch
is split and bound to arguments and what a loss is; how micro-batches are weighed, run and added up
is written apart, with ``testing.keyed_randomness``.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from intandem.equality.comparison import Numbers, numbers_of
from intandem.equality.outputs import joined, snapshot
from intandem.equality.whole_batch import whole_batch_backward
from intandem.recorder import bind_by_signature
from intandem.recorder.capture import without_cache
from intandem.recorder.trees import own_memory
from intandem.runtime.huggingface import COUNT_NAME, count_labels, takes_token_count
from intandem.runtime.losses import LossTerm, WholeBatchLoss, loss_term
from intandem.runtime.microbatch import split_batch
from intandem.testing import keyed_randomness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import nn

    from intandem.recorder import Arguments
    from intandem.runtime.microbatch import Microbatches, Split


@dataclass(frozen=True, slots=True)
class Splitting:
    """How a batch becomes micro-batches and calls of blocks; fields as for ``Pipeline``."""

    microbatches: int
    split: Split | None = None
    count: Callable[[Any], float] | None = None
    inputs: Callable[[Any], Arguments] | None = None
    blocks: Sequence[str | type[nn.Module]] = ()


class Watcher(Protocol):
    """Is told of what the plain model does."""

    def watching(self, model: nn.Module, microbatch: int) -> AbstractContextManager[object]:
        """Return the context in which the model and its loss run on a micro-batch."""
        ...


def one_process(  # noqa: PLR0913  (the public surface)
    model: nn.Module,
    batch: Any,
    loss: Callable[[Any, Any], Any] | None,
    splitting: Splitting,
    *,
    seed: int = 0,
    step: int = 0,
    watcher: Watcher | None = None,
) -> Numbers:
    """Run one step of ``model`` with plain PyTorch, micro-batch by micro-batch.

    Gradients are added to ``.grad``.
    """
    outputs: dict[int, Any] = {}
    parts = split_batch(batch, splitting.microbatches, splitting.split)
    bind = splitting.inputs or bind_by_signature(model, loss_is_separate=loss is not None)
    counts_labels = loss is None and takes_token_count(model, batch)
    num_labels = sum(count_labels(model, part) for part in parts.parts) if counts_labels else 0

    @contextmanager
    def forward(given: Any, index: int) -> Iterator[Any]:
        arguments = bind(given)
        with (
            nullcontext() if watcher is None else watcher.watching(model, index),
            keyed_randomness(
                model, seed=seed, step=step, microbatch=index, blocks=splitting.blocks
            ),
            without_cache(model),
        ):
            output = model(*arguments.args, **arguments.kwargs)
            outputs[index] = snapshot(output)
            yield output

    if isinstance(loss, WholeBatchLoss):
        made = []
        for index, part in enumerate(parts.parts):
            with forward(part, index) as output:
                made.append(output)
        whole = whole_batch_backward(made, parts, loss, splitting.split, (seed, step))
        return numbers_of(model, whole, joined(outputs, carries_loss=False))
    terms: list[LossTerm] = []
    rests: list[Tensor] = []
    for index, part in enumerate(parts.parts):

        def run(given: Any, index: int = index) -> LossTerm:
            given = own_memory(given)  # forward may write to it; parts share a counter of writes
            with forward(given, index) as output:
                return loss_term(output, given, loss)

        if not counts_labels:
            terms.append(run(part))
            continue
        term, rest = _sum_and_rest(model, run, part, max(num_labels, 1))
        terms.append(term)
        rests.append(rest)
    weights = _weights(parts, [term.count for term in terms], splitting.count)
    weighed = [(term.root, weight) for term, weight in zip(terms, weights, strict=True) if weight]
    if counts_labels:
        weighed = [(term.root, 1.0) for term in terms] + list(zip(rests, weights, strict=True))
        losses = [t.root + r * w for t, r, w in zip(terms, rests, weights, strict=True)]
    else:
        losses = [root * weight for root, weight in weighed]
    for value in losses:
        value.backward()  # type: ignore[no-untyped-call]
    total = sum(float(root.detach()) * weight for root, weight in weighed)
    return numbers_of(model, total, joined(outputs, carries_loss=loss is None))


def _sum_and_rest(
    model: nn.Module, run: Callable[[Any], LossTerm], part: Any, num_labels: int
) -> tuple[LossTerm, Tensor]:
    """Return what of a micro-batch's loss is divided by the number of labels, and what is not.

    loss = sum / count + rest: halves and wholes are exact in floating point.
    """
    before = _buffer_copies(model)
    one = run({**part, COUNT_NAME: num_labels})
    with _buffers_as(before):
        two = run({**part, COUNT_NAME: 2 * num_labels})
    zero = torch.zeros_like(one.root)
    if bool(one.root == 2 * two.root):
        return one, zero
    if bool(one.root == two.root):
        return LossTerm(zero, None), one.root
    return LossTerm(2 * (one.root - two.root), None), 2 * two.root - one.root


_Registered = list[tuple[dict[str, Tensor | None], str, Tensor]]


def _buffer_copies(model: nn.Module) -> _Registered:
    """Return a copy of each buffer, and where it is registered."""
    copies: dict[int, Tensor] = {}
    return [
        (module._buffers, key, copies.setdefault(id(buffer), buffer.detach().clone()))
        for module in model.modules()
        for key, buffer in module._buffers.items()
        if buffer is not None
    ]


@contextmanager
def _buffers_as(copies: _Registered) -> Iterator[None]:
    """Let ``model`` use the copies; its own, which autograd may have saved, are not written to."""
    own = [table[key] for table, key, _ in copies]
    for table, key, copy in copies:
        table[key] = copy
    try:
        yield
    finally:
        for (table, key, _), buffer in zip(copies, own, strict=True):
            table[key] = buffer


def _weights(
    parts: Microbatches,
    counts: list[float | None],
    count: Callable[[Any], float] | None,
) -> list[float]:
    """What each micro-batch's loss is multiplied by, so that the sum is the batch's loss."""
    if counts[0] is not None:
        total = sum(number or 0.0 for number in counts)
        return [1.0 / total if total else 0.0] * len(counts)
    numbers: Sequence[float] = parts.rows
    if count is not None:
        numbers = [float(count(part)) for part in parts.parts]
    return [number / sum(numbers) for number in numbers]
