"""How far the demo's training is, as a value that can be shown."""

from __future__ import annotations

from dataclasses import dataclass

from intandem.views.units import share


@dataclass(frozen=True, slots=True)
class State:
    """How far training is.

    Attributes:
        step: steps done.
        done: share of the training that is done, in [0, 1].
        loss: of the last step.
        tokens_per_s: of late.
        bubble_ratio: of late.
        left_s: seconds that remain, or None while unknown.
    """

    step: int
    done: float
    loss: float
    tokens_per_s: float
    bubble_ratio: float
    left_s: float | None

    def __str__(self) -> str:
        left = "" if self.left_s is None else f"  {self.left_s:.0f} s left"
        return (
            f"step {self.step}  loss {self.loss:.3f}  {self.tokens_per_s:,.0f} tokens/s  "
            f"bubble {share(self.bubble_ratio)}{left}"
        )
