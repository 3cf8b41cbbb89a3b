"""What a bisection says: every rung of its ladder, the cause, the place, the remedy."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from intandem.equality.comparison import Equality


class Cause(Enum):
    """What makes numbers differ."""

    RANDOMNESS = "randomness"
    MICROBATCHING = "micro-batching"
    CAPTURE = "capture"
    CUTTING = "cutting"
    SCHEDULE = "the schedule"
    RECOMPUTATION = "recomputation"
    OPTIMIZER = "the optimizer"


@dataclass(frozen=True, slots=True)
class Rung:
    """One run held against one process's numbers.

    Attributes:
        name: what was run.
        against: what it was held against.
        error: of the worst number, relative; None where nothing could be compared.
        same: whether that is within the tolerance.
        worst: which number that is, why nothing was compared, or what was allowed for.
    """

    name: str
    against: str
    error: float | None
    same: bool
    worst: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """A cause of different numbers.

    Attributes:
        cause: which.
        error: of the worst number, relative.
        place: the block, call or line where it shows first.
        why: what was seen.
        remedy: what to do.
    """

    cause: Cause
    error: float
    place: str
    why: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Bisection:
    """What a ladder of runs says about where numbers differ.

    Attributes:
        equality: of one process and the pipeline as asked for.
        rungs: in order, up to the first that differs.
        finding: why the pipeline's numbers are not one process's; None if they are.
        information: how micro-batches differ from one call on the whole batch, in one process as
            in tandem; None if they do not.
    """

    equality: Equality
    rungs: tuple[Rung, ...]
    finding: Finding | None = None
    information: Finding | None = None

    @property
    def equal(self) -> bool:
        """Whether no rung but that of the whole batch found a difference."""
        return self.equality.equal and self.finding is None


REMEDY = {
    Cause.RANDOMNESS: (
        "draw with functions that use the process's generators (torch.rand, F.dropout, "
        "numpy.random.rand, random.random), which are keyed by step, micro-batch and block; what a "
        "generator of the model's own gives (torch.Generator, numpy.random.default_rng, "
        "random.Random) depends on who asks first, and so does state kept in attributes"
    ),
    Cause.MICROBATCHING: (
        "try microbatches=1; if that is equal, micro-batches are put together wrongly: please "
        "report it with this output"
    ),
    Cause.CAPTURE: (
        "keep the module that holds this line whole: Pipeline(..., blocks=[its name]); or write "
        "the stages by hand: Pipeline([first, second], ...); and please report it with this output"
    ),
    Cause.CUTTING: (
        "cut elsewhere: split_points=[first module of every stage but the first]; and please "
        "report it with this output"
    ),
    Cause.SCHEDULE: 'use schedule="naive" or "gpipe" until it is mended; please report it',
    Cause.RECOMPUTATION: 'use recompute="none" until it is mended; please report it',
    Cause.OPTIMIZER: (
        "build the optimizer from pipe.parameters() or pipe.named_parameters(), after the pipeline"
    ),
}
"""What to do about each cause, where nothing more special is known."""

KEYED_REMEDY = (
    "torch draws other numbers there than in one process; switch that dropout off to go on "
    "(p=0), and please report it with this output"
)
"""For draws that torch makes and the pipeline should have keyed."""
