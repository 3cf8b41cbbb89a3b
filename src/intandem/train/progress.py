"""How far a training run is, as a value that can be shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class State:
    """How far training is.

    Attributes:
        step: steps done.
        num_steps: that there are.
        loss: of the last step that was logged; None before the first.
        units_per_s: trained on, of late.
        unit: what these are.
        left_s: seconds that remain, or None while unknown.
    """

    step: int
    num_steps: int
    loss: float | None
    units_per_s: float
    unit: str
    left_s: float | None

    @property
    def done(self) -> float:
        """Share of the training that is done, in [0, 1]."""
        return self.step / self.num_steps

    def __str__(self) -> str:
        left = "" if self.left_s is None else f"  {time_text(self.left_s)} left"
        loss = "" if self.loss is None else f"loss {self.loss:.4f}  "
        return (
            f"step {self.step}/{self.num_steps}  {loss}{self.units_per_s:,.0f} {self.unit}/s{left}"
        )


class Progress(Protocol):
    """Shows how training goes."""

    def __call__(self, state: State) -> None:
        """Show ``state``, or decide not to; called after every step."""
        ...

    def say(self, line: str) -> None:
        """Show a line that stays."""
        ...


class Silence:
    """Shows nothing."""

    def __call__(self, state: State) -> None:
        """See ``Progress``."""

    def say(self, line: str) -> None:
        """See ``Progress``."""


def time_text(seconds: float) -> str:
    """Write seconds as ``1 h 05 min``, ``3 min 20 s`` or ``40 s``."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {whole % 60:02} s" if minutes else f"{whole} s"
