"""What a cap on memory adds to the bounds of a rank.

With k the activations that fit, and all seconds along the way of one micro-batch:

1. *Before the first backward* only as many forwards as fit can be done: its turn, then all the work
   but those forwards. Also with the tail of the last backward, then without the W's.
2. *After the last forward* starts, no more backwards can be left than what fits; all the other work
   comes before it, and the micro-batch's way after it.
3. *Residency*: what a stage keeps of a micro-batch stays at least as long as the way from its F to
   its backward and back takes. With k places that is ceil(M / k) stays, one after another. With
   several stages on a rank, the stays of its first v stages nest; all v are held within the
   innermost.
4. *Area*: memory times seconds of all stays is at most the cap times the seconds there are, less
   what cannot be used at the beginning, as forwards come one by one, and at the end, as backwards
   do.

For equal stages, one per rank: bounds 3, 4 and 5 of the controllable-memory and zero-bubble papers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from intandem.simulator.paths import Part


@dataclass(frozen=True, slots=True)
class Held:
    """What each stage holds, in one unit, and what the rank may hold.

    Attributes:
        activation: per stage, from the start of F to the end of B or I.
        pending: per stage, from the end of I to the end of W.
        cap: of the rank.
    """

    activation: tuple[int, ...]
    pending: tuple[int, ...]
    cap: int


def memory_bound_s(part: Part, held: Held) -> float:
    """Return seconds that the objective takes at least because of the cap of one rank."""
    return max((*_ends(part, held), *_stays(part, held), *_areas(part, held)))


def _ends(part: Part, held: Held) -> Iterator[float]:
    """Bounds 1 and 2."""
    stages, way, count = part.stages, part.way, part.num_microbatches
    seconds = part.chain.seconds
    first, last = stages[0], stages[-1]
    forward_s = count * sum(seconds.forward[s] for s in stages)
    whole_s = count * sum(seconds.whole[s] for s in stages)
    urgent_s = count * sum(seconds.urgent[s] for s in stages)
    early_s = _most(((seconds.forward[s], held.activation[s]) for s in stages), held.cap, count)
    least_tail_s = min(way.back[s] - seconds.urgent[s] for s in stages)
    after_s = forward_s - early_s
    yield way.turn[last] + after_s + whole_s
    yield way.turn[last] + after_s + urgent_s + least_tail_s
    light = ((seconds.whole[s], min(held.activation[s], held.pending[s])) for s in stages)
    late_s = _most(light, held.cap, count)
    before_s = forward_s - seconds.forward[last] + whole_s - late_s
    yield way.head[first] + before_s + part.full_s(last)


def _most(items: Iterable[tuple[float, int]], cap: int, count: int) -> float:
    """Most seconds of ``items`` (seconds, memory) that fit, up to ``count`` of each.

    Of one kind of item whole ones; of several, parts of one may be among them: no less than what
    whole ones come to.
    """
    sized = sorted(items, key=lambda item: -math.inf if item[1] == 0 else -item[0] / item[1])
    total_s, room = 0.0, float(cap)
    for seconds, size in sized:
        fits = count if size == 0 else min(count, room / size)
        fits = math.floor(fits) if len(sized) == 1 else fits
        total_s += fits * seconds
        room -= fits * size
    return total_s


def _stays(part: Part, held: Held) -> Iterator[float]:
    """Bound 3."""
    seconds, way = part.chain.seconds, part.way
    inside = 0
    for s in part.stages:
        inside += held.activation[s]
        if inside == 0:
            continue
        num_places = held.cap // inside
        if num_places == 0:
            continue
        rounds = math.ceil(part.num_microbatches / num_places) - 1
        stay_s = way.turn[s] - way.head[s] + seconds.urgent[s]
        if inside == held.activation[s] and held.pending[s] == held.activation[s]:
            stay_s += seconds.whole[s] - seconds.urgent[s]
        yield way.head[s] + rounds * stay_s + part.full_s(s)


def _areas(part: Part, held: Held) -> Iterator[float]:
    """Bound 4: without what waits for W, with the tail; and with it, without the tail."""
    stages, way, count = part.stages, part.way, part.num_microbatches
    seconds, activation = part.chain.seconds, held.activation
    kept = {s: min(held.pending[s], activation[s]) for s in stages}
    late_s = {s: seconds.whole[s] - seconds.urgent[s] for s in stages}
    turned = sum(
        count * activation[s] * (way.turn[s] - way.head[s] + seconds.urgent[s]) for s in stages
    )
    waiting = sum(count * kept[s] * late_s[s] for s in stages)
    begin_s = way.head[stages[0]]
    tail_s = min(way.back[s] - seconds.urgent[s] for s in stages)
    alone = len(stages) == 1
    pace = _pace if alone else _own
    taking = [(activation[s], pace(seconds.forward, s)) for s in stages]
    turning = [(activation[s], pace(seconds.urgent, s)) for s in stages]
    freeing = [(kept[s], late_s[s]) for s in stages]
    freeing += [(activation[s] - kept[s], seconds.urgent[s]) for s in stages]

    cap = min(held.cap, count * sum(activation[s] for s in stages))
    whole = cap - cap % activation[stages[0]] if alone and activation[stages[0]] else cap
    if whole > 0:
        unused = _ramp(whole, taking) + _ramp(whole, turning)
        yield begin_s + (turned + unused) / whole + tail_s
    if alone and kept[stages[0]] == activation[stages[0]]:
        cap = whole
    if cap > 0:
        unused = _ramp(cap, taking) + _ramp(cap, freeing)
        yield begin_s + (turned + waiting + unused) / cap


def _own(seconds: Sequence[float], stage: int) -> float:
    return seconds[stage]


def _pace(seconds: Sequence[float], stage: int) -> float:
    """Seconds between two micro-batches at ``stage``: those of the slowest stage on the way."""
    return max(seconds[: stage + 1])


def _ramp(cap: int, items: Iterable[tuple[int, float]]) -> float:
    """Memory times seconds missing until ``cap`` is used, if one item after another takes its own.

    Args:
        cap: what is used at most.
        items: (memory, seconds between two) of each kind.
    """
    items = [item for item in items if item[0]]
    if any(not seconds for _, seconds in items):
        return 0.0
    if len(items) == 1 and cap % items[0][0] == 0:
        size, seconds = items[0]
        num_items = cap // size
        return size * seconds * num_items * (num_items - 1) / 2
    missing = max(0, cap - max(size for size, _ in items))
    return missing * missing / (2 * max(size / seconds for size, seconds in items))
