"""The last step as all processes saw it, on one clock."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from intandem.ir import Action, Arrival, Message, Span, Timeline
from intandem.pipeline.clocks import Offset, host_identity, offset_to_first
from intandem.views.report import OptimizerSpan

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from intandem.pipeline.exchange import Exchange
    from intandem.pipeline.passing import Trained

T = TypeVar("T")

_CALL = "timeline()"


class _Parts(NamedTuple):
    """What one process saw."""

    spans: list[Span]
    arrivals: list[Arrival]
    updates: list[OptimizerSpan]


@dataclass(frozen=True, slots=True)
class Gathered:
    """One step of all ranks. Times are seconds since its first action began.

    Attributes:
        timeline: with arrivals.
        updates: of ranks that have stepped their optimizers since, where the pipeline has them do.
        clock_error_s: most that clocks of different ranks may be apart.
    """

    timeline: Timeline
    updates: tuple[OptimizerSpan, ...]
    clock_error_s: float


def gather_step(
    last: Trained,
    updates: Mapping[int, tuple[float, float]],
    exchange: Exchange,
    num_ranks: int,
) -> Gathered:
    """Return the last step on one clock. Collective.

    Args:
        last: the step on this process's ranks, on the clock of ``time.perf_counter``.
        updates: by own rank, start and end of its last optimizer step, on the same clock.
        exchange: with the other processes.
        num_ranks: of the pipeline.
    """
    facts = [json.loads(fact) for fact in exchange.gather(_CALL, _own_facts(last, updates))]
    offsets = _offsets([fact["host"] for fact in facts], exchange)
    found = [_read(fact, by.add_s) for fact, by in zip(facts, offsets, strict=True)]
    first_s = min(span.start_s for spans, _, _ in found for span in spans)
    moved = [_moved(parts, -first_s) for parts in found]
    timeline = Timeline(
        tuple(sorted(_joined(spans for spans, _, _ in moved), key=lambda s: (s.rank, s.start_s))),
        num_ranks,
        tuple(sorted(_joined(there for _, there, _ in moved), key=lambda a: (a.rank, a.time_s))),
    )
    updated = _of_this_step(_joined(updated for _, _, updated in moved), timeline)
    return Gathered(timeline, updated, max(offset.error_s for offset in offsets))


def _own_facts(last: Trained, updates: Mapping[int, tuple[float, float]]) -> bytes:
    facts = {
        "host": host_identity(),
        "spans": [(s.rank, str(s.action), s.start_s, s.end_s) for s in last.spans],
        "arrivals": [(a.rank, str(a.message), a.time_s) for a in last.arrivals],
        "updates": [(rank, *times) for rank, times in updates.items()],
    }
    return json.dumps(facts).encode()


def _offsets(hosts: list[str], exchange: Exchange) -> list[Offset]:
    """Of every process, in rank order. Where all are on one host nothing is asked."""
    if len(set(hosts)) == 1:
        return [Offset()] * len(hosts)
    own = offset_to_first(exchange, hosts, exchange.rank, f"clocks/{exchange.turn}")
    told = exchange.gather(_CALL, json.dumps([own.add_s, own.error_s]).encode())
    return [Offset(*json.loads(one)) for one in told]


def _read(fact: Mapping[str, Any], by_s: float) -> _Parts:
    parts = _Parts(
        [Span(rank, Action.parse(action), *times) for rank, action, *times in fact["spans"]],
        [
            Arrival(rank, Message.parse(message), time_s)
            for rank, message, time_s in fact["arrivals"]
        ],
        [OptimizerSpan(*update) for update in fact["updates"]],
    )
    return _moved(parts, by_s)


def _moved(parts: _Parts, by_s: float) -> _Parts:
    return _Parts(
        [Span(s.rank, s.action, s.start_s + by_s, s.end_s + by_s) for s in parts.spans],
        [Arrival(a.rank, a.message, a.time_s + by_s) for a in parts.arrivals],
        [OptimizerSpan(u.rank, u.start_s + by_s, u.end_s + by_s) for u in parts.updates],
    )


def _joined(lists: Iterable[list[T]]) -> list[T]:
    return [item for found in lists for item in found]


def _of_this_step(
    updates: Iterable[OptimizerSpan], timeline: Timeline
) -> tuple[OptimizerSpan, ...]:
    """Leave out updates of earlier steps, where this one's have not been asked for yet."""
    ends = {s.rank: s.end_s for s in timeline.spans}  # of each rank's last action
    found = [u for u in updates if u.start_s >= ends.get(u.rank, 0.0)]
    return tuple(sorted(found, key=lambda update: update.rank))
