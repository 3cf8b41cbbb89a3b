"""Holding the gradients of a side against those of one process, before anything is timed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from common.workers import WorkerError

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-4
"""Of gradients in float32, relative to their norm."""


def largest_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest error of a parameter's gradient, relative to its norm.

    Raises:
        WorkerError: if not every parameter has one, or one is too far off.
    """
    if found.keys() != expected.keys():
        msg = f"gradients of {len(found)} parameters; expected {len(expected)}"
        raise WorkerError(msg)
    errors = {n: float((found[n] - expected[n]).norm() / expected[n].norm()) for n in expected}
    worst = max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])
    if not errors[worst] < TOLERANCE:
        msg = f"the gradient of {worst} is off by {errors[worst]:.1e} of its norm"
        raise WorkerError(msg)
    return errors[worst]
