"""How fast a run is."""

from __future__ import annotations

from collections import deque

_RECENT = 20
"""Steps that the throughput shown is of."""


class Pace:
    """Units trained on and the seconds that took: of all steps, of late, and since the last log.

    Steps may still be under way when their seconds are taken, and then show up in those of later
    ones.
    """

    def __init__(self) -> None:
        self._recent: deque[tuple[int, float]] = deque(maxlen=_RECENT)
        self._total = self._unlogged = (0, 0.0)

    def add(self, num_units: int, seconds: float) -> None:
        """Take in a step."""
        self._recent.append((num_units, seconds))
        self._total = _plus(self._total, num_units, seconds)
        self._unlogged = _plus(self._unlogged, num_units, seconds)

    @property
    def units_per_s(self) -> float:
        """Of all steps; 0 before the first."""
        return _rate(*self._total)

    @property
    def recent_units_per_s(self) -> float:
        """Of the last steps."""
        return _rate(sum(n for n, _ in self._recent), sum(s for _, s in self._recent))

    def unlogged_units_per_s(self) -> float:
        """Of the steps since this was last asked for."""
        rate, self._unlogged = _rate(*self._unlogged), (0, 0.0)
        return rate

    def left_s(self, num_steps: int) -> float | None:
        """Seconds that so many steps will take; None while there are too few to tell."""
        if len(self._recent) <= 2:
            return None
        return num_steps * sum(s for _, s in self._recent) / len(self._recent)


def _plus(before: tuple[int, float], num_units: int, seconds: float) -> tuple[int, float]:
    return before[0] + num_units, before[1] + seconds


def _rate(num_units: int, seconds: float) -> float:
    return num_units / seconds if seconds else 0.0
