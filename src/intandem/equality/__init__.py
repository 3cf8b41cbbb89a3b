"""One process against a pipeline: outputs, loss, gradients, buffers, parameters.

The witness is the user's own module with plain PyTorch; see ``witness``.
"""

from intandem.equality.checking import check, check_job
from intandem.equality.comparison import (
    TOLERANCE,
    Equality,
    Numbers,
    compare,
    numbers_of,
    tolerance_of,
)
from intandem.equality.findings import Bisection, Cause, Finding, Rung
from intandem.equality.job import Job, Setting, as_float64
from intandem.equality.ladder import bisect, bisect_job, whole_batch_difference
from intandem.equality.witness import Splitting, one_process

__all__ = [
    "TOLERANCE",
    "Bisection",
    "Cause",
    "Equality",
    "Finding",
    "Job",
    "Numbers",
    "Rung",
    "Setting",
    "Splitting",
    "as_float64",
    "bisect",
    "bisect_job",
    "check",
    "check_job",
    "compare",
    "numbers_of",
    "one_process",
    "tolerance_of",
    "whole_batch_difference",
]
