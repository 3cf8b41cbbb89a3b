"""Ratios of what was measured in the same round, their median, and how sure it is."""

from __future__ import annotations

import random
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

_NUM_DRAWS = 2000
_SEED = 0


class Ratio(NamedTuple):
    """The median of ratios within rounds.

    Attributes:
        median: of all rounds.
        low: where the bootstrap 95 % interval of the median begins.
        high: where it ends.
        num_pairs: how many rounds there were.
    """

    median: float
    low: float
    high: float
    num_pairs: int

    def __str__(self) -> str:
        if self.num_pairs == 1:  # of one round there is no interval
            return f"{self.median:.3f}"
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


def interval_of_median(values: Sequence[float]) -> tuple[float, float]:
    """Return the bootstrap 95 % interval (percentiles); the same for the same values."""
    draw = random.Random(_SEED)
    medians = sorted(median(draw.choices(values, k=len(values))) for _ in range(_NUM_DRAWS))
    cut = round(0.025 * _NUM_DRAWS)
    return medians[cut], medians[-1 - cut]


def paired_ratio(found: Sequence[float], other: Sequence[float]) -> Ratio:
    """Return ``found`` over ``other``, round by round.

    Raises:
        ValueError: if they are not of the same rounds, or of none.
    """
    ratios = [a / b for a, b in zip(found, other, strict=True)]
    if not ratios:
        msg = "no rounds to compare; expected at least one"
        raise ValueError(msg)
    return Ratio(median(ratios), *interval_of_median(ratios), len(ratios))
