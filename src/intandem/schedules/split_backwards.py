"""Backwards split in two: what ZB-H1, ZB-H2 and the interleaved zero bubble do to other orders."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from intandem.ir import Action, ActionKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from intandem.ir import Schedule


def split_backwards(whole: Schedule, name: str, delay_of: Callable[[int], int]) -> Schedule:
    """Return ``whole`` with every B as an I in its place and a W later on.

    Args:
        whole: a schedule without marks of overlap.
        name: what to call the result.
        delay_of: of a rank, how many of its backwards a W waits for: that of its k-th comes after
            the I of its (k + delay)-th, and those left over come last.
    """
    rows = (tuple(_split(row, delay_of(rank))) for rank, row in enumerate(whole.actions))
    return replace(whole, name=name, actions=tuple(rows))


def _split(row: Iterable[Action], delay: int) -> Iterator[Action]:
    weights: list[Action] = []
    for action in row:
        if action.kind is not ActionKind.B:
            yield action
            continue
        yield Action(action.stage, ActionKind.I, action.microbatch)
        weights.append(Action(action.stage, ActionKind.W, action.microbatch))
        if len(weights) > delay:
            yield weights[-1 - delay]
    yield from weights[max(len(weights) - delay, 0) :]
