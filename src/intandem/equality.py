"""One process against a pipeline: outputs, loss, every gradient, every buffer.

The witness is the user's own module with plain PyTorch: forward and ``backward`` per micro-batch.
It shares with the pipeline how a batch is split and bound to arguments and what a loss is; how
micro-batches are weighed, run and added up is written apart, with ``testing.keyed_randomness``.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from intandem.pipeline import Options, Pipeline
from intandem.recorder import bind_by_signature
from intandem.recorder.capture import without_cache
from intandem.recorder.trees import map_tree
from intandem.runtime.huggingface import COUNT_NAME, count_labels, takes_token_count
from intandem.runtime.losses import LossTerm, loss_term
from intandem.runtime.microbatch import split_batch
from intandem.testing import keyed_randomness

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from intandem.ir import Schedule
    from intandem.recorder import Arguments
    from intandem.runtime.microbatch import Microbatches, Split

TOLERANCE = 1e-12
"""Largest relative error of float64 numbers that are equal but for the order of sums."""


@dataclass(frozen=True, slots=True)
class Job:
    """What to train: a model, an example batch, and how its loss is computed.

    Attributes:
        model: any module.
        batch: one batch.
        loss: ``loss_fn(output, batch)``, or None when the model's output carries ``loss``.
    """

    model: nn.Module
    batch: Any
    loss: Callable[[Any, Any], Any] | None = None


@dataclass(frozen=True, slots=True)
class Numbers:
    """What one step gives.

    Attributes:
        loss: of the whole batch.
        gradients: by the user's parameter names; None where there is none.
        buffers: after the step, by name.
    """

    loss: float
    gradients: dict[str, Tensor | None]
    buffers: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Equality:
    """How far a pipeline's numbers are from one process's.

    Attributes:
        loss: one process's.
        loss_error: relative.
        gradient_errors: by parameter, relative in norm: |g - g*| / max(|g*|, 1e-3 |all g*|).
        buffer_errors: by buffer, relative in norm.
        tolerance: up to which they count as equal.
    """

    loss: float
    loss_error: float
    gradient_errors: dict[str, float] = field(default_factory=dict)
    buffer_errors: dict[str, float] = field(default_factory=dict)
    tolerance: float = TOLERANCE

    @property
    def max_gradient_error(self) -> float:
        """Error of the worst parameter."""
        return max(self.gradient_errors.values(), default=0.0)

    @property
    def max_buffer_error(self) -> float:
        """Error of the worst buffer."""
        return max(self.buffer_errors.values(), default=0.0)

    @property
    def equal(self) -> bool:
        """Whether everything is within the tolerance."""
        errors = (self.loss_error, self.max_gradient_error, self.max_buffer_error)
        return all(error <= self.tolerance for error in errors)

    def worst(self, count: int = 5) -> list[tuple[str, float]]:
        """Return names and errors of the worst gradients and buffers, worst first."""
        found = [*self.gradient_errors.items(), *self.buffer_errors.items()]
        return sorted(found, key=lambda item: -item[1])[:count]


def check(  # noqa: PLR0913  (the public surface)
    model: nn.Module,
    batch: Any,
    loss: Callable[[Any, Any], Any] | None = None,
    *,
    ranks: int = 2,
    schedule: str | Schedule = "auto",
    microbatches: int = 4,
    recompute: str | bool = "auto",
    split: Split | None = None,
    count: Callable[[Any], float] | None = None,
    inputs: Callable[[Any], Arguments] | None = None,
    seed: int = 0,
    tolerance: float = TOLERANCE,
) -> Equality:
    """Run one step plain and one in tandem, on copies of ``model``, and compare.

    Args:
        model: left as it is. Use float64 (``model.double()``) to tell a mistake from rounding.
        batch: one batch.
        loss: as for ``Pipeline``.
        ranks: of the pipeline.
        schedule: as for ``Pipeline``.
        microbatches: as for ``Pipeline``.
        recompute: as for ``Pipeline``.
        split: as for ``Pipeline``.
        count: as for ``Pipeline``.
        inputs: as for ``Pipeline``.
        seed: keys random draws.
        tolerance: up to which numbers count as equal.
    """
    plain, ours = copy.deepcopy(model), copy.deepcopy(model)
    splitting = Splitting(microbatches, split, count, inputs)
    expected = one_process(plain, batch, loss, splitting, seed=seed)
    with Pipeline(
        ours,
        example=batch,
        loss=loss,
        ranks=ranks,
        schedule=schedule,
        microbatches=microbatches,
        recompute=recompute,
        split=split,
        count=count,
        inputs=inputs,
        options=Options(seed=seed),
    ) as pipe:
        value = float(pipe.step(batch))
    return compare(numbers_of(ours, value), expected, tolerance=tolerance)


@dataclass(frozen=True, slots=True)
class Splitting:
    """How a batch becomes micro-batches and arguments; fields as for ``Pipeline``."""

    microbatches: int
    split: Split | None = None
    count: Callable[[Any], float] | None = None
    inputs: Callable[[Any], Arguments] | None = None


def one_process(
    model: nn.Module,
    batch: Any,
    loss: Callable[[Any, Any], Any] | None,
    splitting: Splitting,
    *,
    seed: int = 0,
    step: int = 0,
) -> Numbers:
    """Run one step of ``model`` with plain PyTorch, micro-batch by micro-batch.

    Gradients are added to ``.grad``.
    """
    parts = split_batch(batch, splitting.microbatches, splitting.split)
    bind = splitting.inputs or bind_by_signature(model, loss_is_separate=loss is not None)
    counts_labels = loss is None and takes_token_count(model, batch)
    num_labels = sum(count_labels(model, part) for part in parts.parts) if counts_labels else 0
    terms: list[LossTerm] = []
    rests: list[Tensor] = []
    for index, part in enumerate(parts.parts):

        def run(given: Any, index: int = index) -> LossTerm:
            arguments = bind(given)
            with (
                keyed_randomness(model, seed=seed, step=step, microbatch=index),
                without_cache(model),
            ):
                output = model(*arguments.args, **arguments.kwargs)
                return loss_term(output, given, loss)

        if not counts_labels:
            terms.append(run(part))
            continue
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        one, two = (run({**part, COUNT_NAME: k * max(num_labels, 1)}) for k in (1, 2))
        model.load_state_dict(buffers, strict=False)
        # loss = sum / count + rest: halves and wholes are exact in floating point
        is_sum, is_rest = bool(one.root == 2 * two.root), bool(one.root == two.root)
        zero = torch.zeros_like(one.root)
        terms.append(LossTerm(zero if is_rest else 2 * (one.root - two.root), None))
        rests.append(zero if is_sum else 2 * two.root - one.root)
        if is_sum:
            terms[-1] = one
    weights = _weights(parts, [term.count for term in terms], splitting.count)
    losses = [term.root * weight for term, weight in zip(terms, weights, strict=True) if weight]
    if counts_labels:
        pairs = zip(terms, rests, weights, strict=True)
        losses = [term.root + rest * weight for term, rest, weight in pairs]
    for value in losses:
        value.backward()  # type: ignore[no-untyped-call]
    return numbers_of(model, sum(float(value.detach()) for value in losses))


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


def numbers_of(model: nn.Module, loss: float) -> Numbers:
    """Collect gradients and buffers of ``model`` as they are."""
    gradients = {
        name: None if parameter.grad is None else parameter.grad.detach().clone()
        for name, parameter in model.named_parameters()
    }
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    return Numbers(loss, gradients, buffers)


def compare(found: Numbers, expected: Numbers, *, tolerance: float = TOLERANCE) -> Equality:
    """Return how far ``found`` is from ``expected``."""
    floor = 1e-3 * _total_norm(expected.gradients)
    scale = max(abs(expected.loss), torch.finfo(torch.float64).tiny)
    return Equality(
        loss=expected.loss,
        loss_error=_finite(abs(found.loss - expected.loss) / scale),
        gradient_errors={
            name: _error(found.gradients.get(name), gradient, floor)
            for name, gradient in expected.gradients.items()
        },
        buffer_errors={
            name: _error(found.buffers.get(name), buffer, 0.0)
            for name, buffer in expected.buffers.items()
        },
        tolerance=tolerance,
    )


def as_float64(job: Job) -> Job:
    """Return a copy of ``job`` whose floating-point numbers are float64."""

    def double(leaf: Any) -> Any:
        is_float = isinstance(leaf, Tensor) and leaf.is_floating_point()
        return leaf.double() if is_float else leaf

    return Job(copy.deepcopy(job.model).double(), map_tree(double, job.batch), job.loss)


def _error(found: Tensor | None, expected: Tensor | None, floor: float) -> float:
    if expected is None or found is None:
        return 0.0 if found is None and expected is None else float("inf")
    norm = float(torch.linalg.vector_norm(expected.double()))
    difference = float(torch.linalg.vector_norm(found.double() - expected.double()))
    scale = max(norm, floor)
    error = difference / scale if scale > 0 else difference
    return _finite(error)


def _finite(error: float) -> float:
    """Return infinity for what is not a number, so that nothing compares as equal to it."""
    return error if math.isfinite(error) else math.inf


def _total_norm(gradients: Mapping[str, Tensor | None]) -> float:
    squares = [
        float(torch.linalg.vector_norm(gradient.double())) ** 2
        for gradient in gradients.values()
        if gradient is not None
    ]
    return float(sum(squares) ** 0.5)
