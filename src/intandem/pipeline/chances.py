"""Models whose draws decide which blocks run: an example that shows as many of them as possible."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from intandem.recorder.capture import record
from intandem.runtime.randomness import EqualDraws
from intandem.runtime.stage import Draw

if TYPE_CHECKING:
    from collections.abc import Callable

    from intandem.pipeline.request import Request
    from intandem.recorder import Arguments
    from intandem.recorder.capture import Run
    from intandem.recorder.draws import Draws

_MIN_DRAWS, _MAX_DRAWS = 4, 64
"""How many other draws the example is recorded with where draws decide which blocks run."""


def fullest(request: Request, example: Any, bind: Callable[[Any], Arguments], usual: Run) -> Run:
    """Return a recording with draws that drop as few blocks as can be found; it is not run.

    Args:
        request: what the user asked for.
        example: what is recorded.
        bind: how it becomes arguments.
        usual: a recording of it with its own draws.
    """
    others: list[Draws] = [EqualDraws(0.999), EqualDraws(0.001)]
    others += [Draw(request.options.seed, step, 0) for step in range(1, _MAX_DRAWS)]
    best, never = usual, set(usual.graph.unused)
    for index, draws in enumerate(others if usual.graph.chances else ()):
        if len(best.graph.unused) == len(never) and (index >= _MIN_DRAWS or not never):
            break
        run = record(request.model, example, bind, blocks=request.blocks, draws=draws)
        never &= set(run.graph.unused)
        if len(run.graph.unused) < len(best.graph.unused):
            best = run._replace(tensors=())
    return best
