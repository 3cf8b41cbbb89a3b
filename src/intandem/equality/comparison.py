"""The numbers of one step, and how far two sets of them are apart."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import nn

TOLERANCE = 1e-12
"""Largest relative error of float64 numbers that are equal but for the order of sums."""

_TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def tolerance_of(dtypes: Iterable[torch.dtype]) -> float:
    """Return up to which relative error numbers count as equal in the lowest of precisions."""
    return max([TOLERANCE, *(_TOLERANCES.get(dtype, TOLERANCE) for dtype in dtypes)])


@dataclass(frozen=True, slots=True)
class Numbers:
    """What one step gives.

    Attributes:
        loss: of the whole batch.
        gradients: by the user's parameter names; None where there is none.
        buffers: after the step, by name.
        outputs: of the step itself, by path, the micro-batches' one after the other; None where
            they were not kept.
        parameters: after the optimizer, by name; None before it.
        slack: how far the optimizer takes each parameter when gradients change by the tolerance.
    """

    loss: float
    gradients: dict[str, Tensor | None]
    buffers: dict[str, Tensor]
    outputs: dict[str, Tensor] | None = None
    parameters: dict[str, Tensor] | None = None
    slack: dict[str, float] = field(default_factory=dict)


class Worst(NamedTuple):
    """One of the worst numbers: ``batch``, ``output``, ``gradient``, ``buffer``, ``parameter``."""

    kind: str
    name: str
    error: float


@dataclass(frozen=True, slots=True)
class Equality:
    """How far a pipeline's numbers are from one process's.

    Attributes:
        loss: one process's.
        loss_error: relative.
        gradient_errors: by parameter, relative in norm: |g - g*| / max(|g*|, 1e-3 |all g*|).
        buffer_errors: by buffer, relative in norm: |b - b*| / max(|b*|, 1e-3 |all b* of its
            module|).
        output_errors: by path in the model's output, relative in norm.
        parameter_errors: by parameter, after the optimizer: |p - p*| / max(|p*|, slack), where
            slack is how far a gradient error of 1 (of that measure) may take it.
        batch_errors: what is wrong with the micro-batches themselves; empty if nothing is.
        tolerance: up to which they count as equal.
        optimizer: what updated the parameters.
        lowered: where forward or loss computes in a lower precision than the model's, if anywhere.
        lowest: the machine epsilon there.
        autocast: where forward runs under autocast, if anywhere.
    """

    loss: float
    loss_error: float
    gradient_errors: dict[str, float] = field(default_factory=dict)
    buffer_errors: dict[str, float] = field(default_factory=dict)
    output_errors: dict[str, float] = field(default_factory=dict)
    parameter_errors: dict[str, float] = field(default_factory=dict)
    batch_errors: dict[str, float] = field(default_factory=dict)
    tolerance: float = TOLERANCE
    optimizer: str = ""
    lowered: str = ""
    lowest: float = 0.0
    autocast: str = ""

    @property
    def max_gradient_error(self) -> float:
        """Error of the worst gradient."""
        return max(self.gradient_errors.values(), default=0.0)

    @property
    def max_buffer_error(self) -> float:
        """Error of the worst buffer."""
        return max(self.buffer_errors.values(), default=0.0)

    @property
    def max_output_error(self) -> float:
        """Error of the worst output."""
        return max(self.output_errors.values(), default=0.0)

    @property
    def max_parameter_error(self) -> float:
        """Error of the worst parameter after the optimizer."""
        return max(self.parameter_errors.values(), default=0.0)

    @property
    def max_error(self) -> float:
        """Error of the worst of everything."""
        return max([self.loss_error, *(entry.error for entry in self.ranked(1))])

    @property
    def equal(self) -> bool:
        """Whether everything is within the tolerance."""
        return self.max_error <= self.tolerance

    def worst(self, count: int = 5) -> list[tuple[str, float]]:
        """Return names and errors of the worst numbers, worst first; see ``ranked``."""
        return [(entry.name, entry.error) for entry in self.ranked(count)]

    def ranked(self, count: int = 5) -> list[Worst]:
        """Return the worst outputs, gradients, buffers and parameters, worst first."""
        kinds = {
            "batch": self.batch_errors,
            "output": self.output_errors,
            "gradient": self.gradient_errors,
            "buffer": self.buffer_errors,
            "parameter": self.parameter_errors,
        }
        found = [Worst(kind, *item) for kind, errors in kinds.items() for item in errors.items()]
        return sorted(found, key=lambda entry: -entry.error)[:count]


def numbers_of(model: nn.Module, loss: float, outputs: dict[str, Tensor] | None = None) -> Numbers:
    """Collect gradients and buffers of ``model`` as they are."""
    gradients = {
        name: None if parameter.grad is None else parameter.grad.detach().clone()
        for name, parameter in model.named_parameters()
    }
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    return Numbers(loss, gradients, buffers, outputs)


def compare(found: Numbers, expected: Numbers, *, tolerance: float = TOLERANCE) -> Equality:
    """Return how far ``found`` is from ``expected``.

    Outputs and parameters are compared if both have them.
    """
    floor = gradient_floor(expected.gradients)
    floor_of = _buffer_floors(expected.buffers)
    scale = max(abs(expected.loss), torch.finfo(torch.float64).tiny)
    return Equality(
        loss=expected.loss,
        loss_error=_finite(abs(found.loss - expected.loss) / scale),
        gradient_errors={
            name: relative_error(found.gradients.get(name), gradient, floor)
            for name, gradient in expected.gradients.items()
        },
        buffer_errors={
            name: relative_error(found.buffers.get(name), buffer, floor_of[_module(name)])
            for name, buffer in expected.buffers.items()
        },
        output_errors=_output_errors(found.outputs, expected.outputs),
        parameter_errors=_parameter_errors(found, expected, tolerance),
        tolerance=tolerance,
    )


def gradient_floor(gradients: Mapping[str, Tensor | None]) -> float:
    """Return what a gradient's error is relative to at least: 1e-3 of the norm of all."""
    norms = [norm(gradient) for gradient in gradients.values() if gradient is not None]
    return _floor(norms)


def _buffer_floors(buffers: Mapping[str, Tensor]) -> dict[str, float]:
    """Return what a buffer's error is relative to at least: 1e-3 of the norm of its module's.

    A running mean may be nothing but rounding: what a normalisation returns has no mean, nor has
    what a convolution of it returns. The variance beside it says how large a mean would be.
    """
    norms: dict[str, list[float]] = {}
    for name, buffer in buffers.items():
        of_module = norms.setdefault(_module(name), [])
        if buffer.is_floating_point() or buffer.is_complex():
            of_module.append(norm(buffer))
    return {module: _floor(filter(math.isfinite, found)) for module, found in norms.items()}


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _floor(norms: Iterable[float]) -> float:
    return 1e-3 * math.sqrt(sum(found**2 for found in norms))


def norm(tensor: Tensor) -> float:
    """Return the 2-norm of all elements, computed in double precision."""
    return float(torch.linalg.vector_norm(_double(tensor)))


def relative_error(found: Tensor | None, expected: Tensor | None, floor: float = 0.0) -> float:
    """Return |found - expected| / max(|expected|, floor); infinity for what is not a number."""
    if expected is None or found is None:
        return 0.0 if found is None and expected is None else math.inf
    if found.shape != expected.shape:
        return math.inf
    scale = max(norm(expected), floor)
    difference = norm(_double(found) - _double(expected))
    return _finite(difference / scale if scale > 0 else difference)


def value_error(found: Tensor, expected: Tensor) -> float:
    """Return the relative error of what a forward made, where infinities may be meant (masks)."""
    if found.shape != expected.shape:
        return math.inf
    found, expected = _double(found), _double(expected)
    odd = ~torch.isfinite(expected) | ~torch.isfinite(found)
    if not bool(odd.any()):
        return relative_error(found, expected)
    if not torch.equal(found[odd].nan_to_num(0.5), expected[odd].nan_to_num(0.5)):
        return math.inf
    return relative_error(found.masked_fill(odd, 0), expected.masked_fill(odd, 0))


def _parameter_errors(found: Numbers, expected: Numbers, tolerance: float) -> dict[str, float]:
    if found.parameters is None or expected.parameters is None:
        return {}
    return {
        name: relative_error(
            found.parameters.get(name), parameter, expected.slack.get(name, 0.0) / tolerance
        )
        for name, parameter in expected.parameters.items()
    }


def _output_errors(
    found: Mapping[str, Tensor] | None, expected: Mapping[str, Tensor] | None
) -> dict[str, float]:
    if found is None or expected is None:
        return {}
    return {
        name: value_error(found[name], expected[name])
        if name in found and name in expected
        else math.inf
        for name in {**expected, **found}
    }


def _double(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    return tensor.to(torch.complex128) if tensor.is_complex() else tensor.double()


def _finite(error: float) -> float:
    """Return infinity for what is not a number, so that nothing compares as equal to it."""
    return error if math.isfinite(error) else math.inf
