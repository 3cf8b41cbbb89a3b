"""One process's numbers: the user's own module with plain PyTorch.

The witness runs forward and ``backward`` per micro-batch. It shares with the pipeline how a batch
is split and bound to arguments and what a loss is; how micro-batches are weighed, run and added up
is written apart, with ``testing.keyed_randomness``.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from intandem.equality.comparison import Numbers, numbers_of
from intandem.equality.outputs import joined, snapshot
from intandem.equality.whole_batch import whole_batch_loss
from intandem.errors import BatchError
from intandem.recorder import bind_by_signature
from intandem.recorder.binding import missing_arguments
from intandem.recorder.capture import without_cache
from intandem.recorder.trees import own_memory
from intandem.runtime.huggingface import COUNT_NAME, count_labels, takes_token_count
from intandem.runtime.losses import LossTerm, WholeBatchLoss, loss_term
from intandem.runtime.microbatch import split_batch
from intandem.testing import keyed_backward, keyed_randomness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor, nn

    from intandem.recorder import Arguments
    from intandem.runtime.microbatch import Microbatches, Split
    from intandem.testing import Draws


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
    parts = split_batch(batch, splitting.microbatches, splitting.split)
    plain = _Plain(model, loss, splitting, (seed, step), watcher)
    if isinstance(loss, WholeBatchLoss):
        outputs = [plain.output(part, index) for index, part in enumerate(parts.parts)]
        whole = whole_batch_loss(outputs, parts, loss, splitting.split, (seed, step))
        weighed = [(whole, 1.0)]
    else:
        weighed = _weighed_losses(plain, parts, batch)
    for value in [root * weight for root, weight in weighed]:
        keyed_backward(value, plain.draws)
    total = sum(float(root.detach()) * weight for root, weight in weighed)
    return numbers_of(model, total, joined(plain.outputs, carries_loss=loss is None))


class _Plain:
    """Calls the user's module on micro-batches, with the draws that a pipeline gives it.

    Args:
        model: the user's module.
        loss: as for ``Pipeline``.
        splitting: how micro-batches become arguments and calls of blocks.
        key: seed and step of random draws.
        watcher: is told of each call, if given.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], Any] | None,
        splitting: Splitting,
        key: tuple[int, int],
        watcher: Watcher | None,
    ) -> None:
        self.model = model
        self.splitting = splitting
        self.outputs: dict[int, Any] = {}
        self.draws: list[Draws] = []
        self.carries_loss = loss is None
        self._loss = loss
        self._bind = splitting.inputs or bind_by_signature(model, loss_is_separate=loss is not None)
        self._key = key
        self._watcher = watcher

    def output(self, part: Any, index: int) -> Any:
        """Return what the model gives for a micro-batch."""
        with self._forward(own_memory(part), index) as output:
            return output

    def loss(self, part: Any, index: int) -> LossTerm:
        """Return the loss of a micro-batch."""
        part = own_memory(part)  # forward may write to it; parts share a counter of writes
        with self._forward(part, index) as output:
            return loss_term(output, part, self._loss)

    @contextmanager
    def _forward(self, part: Any, index: int) -> Iterator[Any]:
        arguments = self._bind(part)
        seed, step = self._key
        with (
            nullcontext() if self._watcher is None else self._watcher.watching(self.model, index),
            keyed_randomness(
                self.model, seed=seed, step=step, microbatch=index, blocks=self.splitting.blocks
            ) as drawn,
            without_cache(self.model),
        ):
            self.draws.append(drawn)
            output = _called(self.model, arguments)
            self.outputs[index] = snapshot(output)
            yield output


def _called(model: nn.Module, arguments: Arguments) -> Any:
    try:
        return model(*arguments.args, **arguments.kwargs)
    except TypeError as error:
        if remedy := missing_arguments(model, arguments):
            msg = f"{error}; {remedy}"
            raise BatchError(msg) from error
        raise


def _weighed_losses(plain: _Plain, parts: Microbatches, batch: Any) -> list[tuple[Tensor, float]]:
    """Return the losses of micro-batches and what each is multiplied by; none for a weight of 0."""
    model, count = plain.model, plain.splitting.count
    terms: list[LossTerm] = []
    if plain.carries_loss and takes_token_count(model, batch):
        num_labels = max(sum(count_labels(model, part) for part in parts.parts), 1)
        weights = _weights(parts, [None], count)
        for index, part in enumerate(parts.parts):
            run = functools.partial(plain.loss, index=index)
            term, weights[index] = _counted(model, run, part, num_labels, weights[index])
            terms.append(term)
    else:
        terms = [plain.loss(part, index) for index, part in enumerate(parts.parts)]
        counts = [None if term.count is None else float(term.count) for term in terms]
        weights = _weights(parts, counts, count)
    return [(term.root, weight) for term, weight in zip(terms, weights, strict=True) if weight]


def _counted(
    model: nn.Module, run: Callable[[Any], LossTerm], part: Any, num_labels: int, share: float
) -> tuple[LossTerm, float]:
    """Return the loss of a micro-batch whose model is told how many labels the batch has.

    w * (sum / (w * count) + rest) = sum / count + w * rest, whatever the loss is made of.

    Args:
        model: the user's module.
        run: returns the loss of a micro-batch.
        part: the micro-batch.
        num_labels: of the whole batch.
        share: w, what a mean over the micro-batch is multiplied by.

    Returns:
        The loss, and what it is multiplied by.
    """
    with _buffers_set_aside(model):
        is_sum = _is_sum(run, part)
    if is_sum:
        return run({**part, COUNT_NAME: num_labels}), 1.0
    dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)
    number = torch.tensor(num_labels * (share or 1.0), dtype=dtype)
    return run({**part, COUNT_NAME: number}), share


def _is_sum(run: Callable[[Any], LossTerm], part: Any) -> bool:
    """Tell whether all of the loss is divided by the number: halves and wholes are exact."""
    with torch.no_grad():
        one, two = (run({**part, COUNT_NAME: number}).root for number in (8, 16))
    return bool(one == 2 * two) and bool(one != 0)


@contextmanager
def _buffers_set_aside(model: nn.Module) -> Iterator[None]:
    """Let ``model`` use copies of its buffers; its own, which autograd may have saved, rest."""
    tables = [module._buffers for module in model.modules()]
    before = [dict(table) for table in tables]
    copies: dict[int, Tensor] = {}
    for table in tables:
        for key, buffer in table.items():
            if buffer is not None:
                table[key] = copies.setdefault(id(buffer), buffer.detach().clone())
    try:
        yield
    finally:
        for table, own in zip(tables, before, strict=True):
            table.update(own)


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
