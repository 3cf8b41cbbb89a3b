"""One forward, one backward: the order that most schedules give each rank."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

T = TypeVar("T")


def alternate(forwards: Sequence[T], backwards: Sequence[T], num_warmup: int) -> Iterator[T]:
    """Yield a rank's forwards and as many backwards in one order.

    First ``num_warmup`` forwards, then a backward and a forward in turn until the forwards are
    used up, then the backwards that are left. With fewer forwards than that, they all come first.
    """
    num_warmup = min(num_warmup, len(forwards))
    steady = zip(backwards, forwards[num_warmup:], strict=False)
    cooldown = backwards[len(forwards) - num_warmup :]
    return chain(forwards[:num_warmup], chain.from_iterable(steady), cooldown)
