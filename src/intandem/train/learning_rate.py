"""The learning rate of a step: a function of its number alone, so there is nothing to save."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from intandem.train.config import LearningRateConfig


def factor(config: LearningRateConfig, step: int, num_steps: int) -> float:
    """Return what the peak is multiplied by in a step, of 0 to ``num_steps - 1``.

    It rises in a line to 1 at the end of the warm-up; from there ``linear`` and ``cosine`` fall to
    ``config.final`` at the last step::

        warmup=4, final=0       . 1 .
                              .       .     linear
                            .           .
                          .               0
    """
    if step < config.warmup:
        return (step + 1) / config.warmup
    num_falling = num_steps - 1 - max(0, config.warmup - 1)
    behind = (step - max(0, config.warmup - 1)) / num_falling if num_falling > 0 else 1.0
    match config.shape:
        case "constant":
            return 1.0
        case "linear":
            share = 1.0 - behind
        case "cosine":
            share = 0.5 * (1.0 + math.cos(math.pi * behind))
    return config.final + (1.0 - config.final) * share
