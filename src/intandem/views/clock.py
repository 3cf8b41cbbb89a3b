"""Where things are in a drawing: seconds to x, ranks to y."""

from __future__ import annotations

from dataclasses import dataclass

WIDTH = 1200
"""Of every drawing, in user units: pixels, unless the page scales it."""
LEFT, RIGHT = 62, 84
"""Room for the rank's name and for the number at the end of its row."""
ROW, GAP = 28, 4
AXIS = 22
"""Height of the time axis below the rows."""


@dataclass(frozen=True, slots=True)
class Clock:
    """Maps seconds since the step began to x, and ranks to y.

    Attributes:
        length_s: time at the right edge of the plot; what comes later is not drawn.
        row_height: of each rank's row.
    """

    length_s: float
    row_height: int = ROW

    def x(self, time_s: float) -> float:
        """Return the x of ``time_s``."""
        return LEFT + self.width(time_s)

    def width(self, seconds: float) -> float:
        """Return how wide ``seconds`` are."""
        return (WIDTH - LEFT - RIGHT) * seconds / self.length_s if self.length_s > 0 else 0.0

    def seconds(self, width: float) -> float:
        """Return how many seconds are as wide as ``width``."""
        return self.length_s * width / (WIDTH - LEFT - RIGHT)

    def y(self, rank: int) -> int:
        """Return the y of the top of a rank's row."""
        return rank * (self.row_height + GAP)

    def height(self, num_ranks: int) -> int:
        """Return the height of a drawing of that many ranks, the time axis included."""
        return self.y(num_ranks) + AXIS
