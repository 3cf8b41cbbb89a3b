"""Cut a recording into stages: what each runs, receives, keeps and hands on.

Values cross a cut by liveness: a stage receives what it reads and did not make. A value derived
from the batch alone is made again by each stage that reads it. A value read by several stages goes
straight to each of them; its gradient comes back through them, last reader first (StageLinks).
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from intandem.errors import CaptureError
from intandem.ir import StageLinks
from intandem.recorder.graph import Graph, reads_of, refs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Hand = dict[int, tuple[int, ...]]
"""Values by the stage at the other end, ascending."""


@dataclass(frozen=True, slots=True)
class StageGraph:
    """One stage of a cut recording.

    Attributes:
        stage: its number.
        calls: indices into the recording's calls, in order.
        batch: values of the batch it reads.
        copied: values it receives and writes to, so that it needs a copy of its own.
        received: values that arrive, by the stage that made them.
        sent: values that leave, by the stage that reads them.
        gradients_received: values whose gradient arrives, by the stage it comes from.
        gradients_sent: values whose gradient leaves, by the stage it goes to.
        returns_output: whether it is the last stage, which returns the model's output.
    """

    stage: int
    calls: tuple[int, ...]
    batch: tuple[int, ...]
    copied: frozenset[int]
    received: Hand
    sent: Hand
    gradients_received: Hand
    gradients_sent: Hand
    returns_output: bool


@dataclass(frozen=True, slots=True)
class Segment:
    """Calls that no cut may separate: one call with parameters and what belongs to it.

    Attributes:
        start: index of its first call.
        end: index after its last call.
        name: name of its first call with parameters.
        call: how many calls of that name came before.
        crossing_bytes: bytes that cross a cut before its first call; 0 for the first segment.
    """

    start: int
    end: int
    name: str
    call: int
    crossing_bytes: int


def segments(graph: Graph) -> tuple[Segment, ...]:
    """Return the smallest parts ``graph`` can be cut into, each holding parameters.

    Between two calls with parameters the cut goes where the fewest bytes cross; where no cut is
    allowed (memory written to through two values, a module called twice whose buffers change),
    both belong to one segment.
    """
    anchors = [i for i, call in enumerate(graph.calls) if call.parameters]
    crossing = crossing_bytes(graph)
    forbidden = _forbidden(graph)
    starts = [0]
    for before, after in itertools.pairwise(anchors):
        allowed = [c for c in range(before + 1, after + 1) if c not in forbidden]
        if allowed:
            starts.append(min(allowed, key=lambda c: (crossing[c], c)))
    ends = [*starts[1:], len(graph.calls)]
    return tuple(
        _segment(graph, start, end, crossing) for start, end in zip(starts, ends, strict=True)
    )


def _segment(graph: Graph, start: int, end: int, crossing: Sequence[int]) -> Segment:
    first = next((c for c in graph.calls[start:end] if c.parameters), None)
    name = first.anchor if first else ""
    return Segment(start, end, name, first.call if first else 0, crossing[start] if start else 0)


def crossing_bytes(graph: Graph) -> list[int]:
    """Return for each position the bytes that a cut before that call would send onwards."""
    last_read = _last_reads(graph)
    steps = [0] * (len(graph.calls) + 2)
    for value, last in last_read.items():
        facts = graph.values[value]
        if not facts.derived and last > facts.producer:
            steps[facts.producer + 1] += facts.num_bytes
            steps[last + 1] -= facts.num_bytes
    total, result = 0, []
    for step in steps[: len(graph.calls) + 1]:
        total += step
        result.append(total)
    return result


def reads(graph: Graph, index: int) -> list[int]:
    """Return the values that call ``index`` reads."""
    return reads_of(graph.calls[index])


def _last_reads(graph: Graph) -> dict[int, int]:
    last: dict[int, int] = {}
    for index in range(len(graph.calls)):
        for value in reads(graph, index):
            last[value] = index
    for value in refs(graph.output):
        last[value] = len(graph.calls)
    return last


def _forbidden(graph: Graph) -> set[int]:
    """Return the positions at which a cut would change what the model computes."""
    forbidden: set[int] = set()
    last_read = _last_reads(graph)
    last_write: dict[int, int] = {}
    for index, call in enumerate(graph.calls):
        last_write.update(dict.fromkeys(call.written, index))
    by_storage: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for value, last in last_read.items():
        facts = graph.values[value]
        if not facts.derived and facts.storage in last_write:
            by_storage[facts.storage].append((facts.producer, last))
    for storage, lives in by_storage.items():
        for position in range(1, last_write[storage] + 1):
            if sum(made < position <= last for made, last in lives) > 1:
                forbidden.add(position)
    for calls in _calls_by_updated_buffer(graph).values():
        forbidden.update(range(calls[0] + 1, calls[-1] + 1))
    return forbidden


def _calls_by_updated_buffer(graph: Graph) -> dict[str, list[int]]:
    updated = {name for call in graph.calls for name in call.updates}
    calls: dict[str, list[int]] = defaultdict(list)
    for index, call in enumerate(graph.calls):
        for name in set(call.buffers) & updated:
            calls[name].append(index)
    return calls


def cut(graph: Graph, starts: Sequence[int]) -> tuple[StageGraph, ...]:
    """Cut ``graph`` into stages.

    Args:
        graph: the recording.
        starts: index of each stage's first call; the first is 0.
    """
    cutter = _Cutter(graph, tuple(starts))
    return tuple(cutter.stage(stage) for stage in range(len(starts)))


def links_of(stages: Sequence[StageGraph]) -> StageLinks:
    """Return which stages hand values to which."""
    forward = [(s.stage, target) for s in stages for target in s.sent]
    backward = [(s.stage, target) for s in stages for target in s.gradients_sent]
    return StageLinks(tuple(sorted(forward)), tuple(sorted(backward)))


class _Cutter:
    def __init__(self, graph: Graph, starts: tuple[int, ...]) -> None:
        self._graph = graph
        self._num_stages = len(starts)
        ends = (*starts[1:], len(graph.calls))
        self._stage_of_call = [
            stage
            for stage, (a, b) in enumerate(zip(starts, ends, strict=True))
            for _ in range(a, b)
        ]
        self._derived = {v.producer for v in graph.values if v.derived and v.producer >= 0}
        self._calls = [self._calls_of(stage) for stage in range(self._num_stages)]
        self._reads = [self._reads_of(stage) for stage in range(self._num_stages)]
        self._readers: dict[int, list[int]] = defaultdict(list)
        for stage, values in enumerate(self._reads):
            for value in values:
                if not self._is_derived(value) and self._maker(value) != stage:
                    self._readers[value].append(stage)

    def stage(self, stage: int) -> StageGraph:
        """Return one stage."""
        received: dict[int, list[int]] = defaultdict(list)
        sent: dict[int, list[int]] = defaultdict(list)
        gradients_received: dict[int, list[int]] = defaultdict(list)
        gradients_sent: dict[int, list[int]] = defaultdict(list)
        for value, readers in sorted(self._readers.items()):
            way_back = (self._maker(value), *readers)
            if stage == way_back[0]:
                for reader in readers:
                    sent[reader].append(value)
            elif stage in readers:
                received[way_back[0]].append(value)
            if stage in way_back and self._graph.values[value].requires_grad:
                place = way_back.index(stage)
                if place + 1 < len(way_back):
                    gradients_received[way_back[place + 1]].append(value)
                if place > 0:
                    gradients_sent[way_back[place - 1]].append(value)
        arrived = {value for values in received.values() for value in values}
        batch = {v for v in self._reads[stage] if self._graph.values[v].producer < 0}
        return StageGraph(
            stage=stage,
            calls=tuple(self._calls[stage]),
            batch=tuple(sorted(batch)),
            copied=self._written_among(stage, arrived | batch),
            received=_hand(received),
            sent=_hand(sent),
            gradients_received=_hand(gradients_received),
            gradients_sent=_hand(gradients_sent),
            returns_output=stage == self._num_stages - 1,
        )

    def _is_derived(self, value: int) -> bool:
        return self._graph.values[value].derived

    def _maker(self, value: int) -> int:
        return self._stage_of_call[self._graph.values[value].producer]

    def _calls_of(self, stage: int) -> list[int]:
        """Return the stage's own calls and the derived ones it has to make again."""
        wanted = {i for i, s in enumerate(self._stage_of_call) if s == stage} - self._derived
        open_values = [v for i in wanted for v in reads(self._graph, i)]
        if stage == self._num_stages - 1:
            open_values += refs(self._graph.output)
        while open_values:
            producer = self._graph.values[open_values.pop()].producer
            if producer in self._derived and producer not in wanted:
                wanted.add(producer)
                open_values += reads(self._graph, producer)
        return sorted(wanted)

    def _reads_of(self, stage: int) -> set[int]:
        values = {v for i in self._calls[stage] for v in reads(self._graph, i)}
        if stage == self._num_stages - 1:
            values |= set(refs(self._graph.output))
        return values

    def _written_among(self, stage: int, values: set[int]) -> frozenset[int]:
        written = {s for i in self._calls[stage] for s in self._graph.calls[i].written}
        return frozenset(v for v in values if self._graph.values[v].storage in written)


def _hand(values: dict[int, list[int]]) -> Hand:
    return {stage: tuple(found) for stage, found in sorted(values.items())}


@dataclass(frozen=True, slots=True)
class Cuts:
    """Where a model is cut, by names that all its recordings share.

    Attributes:
        names: (name, call) of every segment of the recording that was cut first, in order.
        starts: index among them of each stage's first; the first is 0.
    """

    names: tuple[tuple[str, int], ...]
    starts: tuple[int, ...]


def same_cuts(graph: Graph, cuts: Cuts) -> tuple[int, ...]:
    """Return where ``graph`` is cut so that each stage runs what it runs in the first recording.

    A stage begins at the first of its segments that is there. Where draws decide the path, it may
    have none left, and is empty.

    Args:
        graph: another recording of the same model.
        cuts: of the first.

    Raises:
        CaptureError: if this recording does not have such segments, or not in that order.
    """
    at = {(segment.name, segment.call): segment.start for segment in segments(graph)}
    ends = (*cuts.starts[1:], len(cuts.names))
    spans = [cuts.names[start:end] for start, end in zip(cuts.starts, ends, strict=True)]
    missing = [span[0][0] for span in spans[1:] if not any(name in at for name in span)]
    if missing and not graph.chances:
        msg = (
            f"for this batch forward does not call {missing[0]} as it did for the example, and a "
            "stage begins there; choose other stages, or an example that takes the same path"
        )
        raise CaptureError(msg)
    if graph.chances:
        _refuse_unknown(at, cuts)
    starts = _starts_with_gaps(at, cuts, len(graph.calls))
    if starts != sorted(starts if graph.chances else set(starts)):
        msg = f"for this batch forward calls {[span[0][0] for span in spans[1:]]} in another order"
        raise CaptureError(msg)
    return tuple(starts)


def _starts_with_gaps(at: Mapping[tuple[str, int], int], cuts: Cuts, num_calls: int) -> list[int]:
    """Let each stage begin at the first of its segments that is there, or where the next does."""
    starts: list[int] = []
    end = len(cuts.names)
    for start in reversed(cuts.starts[1:]):
        own = [at[name] for name in cuts.names[start:end] if name in at]
        starts.append(own[0] if own else [num_calls, *starts][-1])
        end = start
    return [0, *reversed(starts)]


def _refuse_unknown(at: Mapping[tuple[str, int], int], cuts: Cuts) -> None:
    known = set(cuts.names)
    order = [cuts.names.index(key) for key in at if key in known]
    unknown = [name for name, call in at if (name, call) not in known]
    if unknown or order != sorted(order):
        what = (
            f"calls {unknown[0]}, which it did not" if unknown else "calls its blocks in an order"
        )
        msg = (
            f"by the draws of this micro-batch forward {what} when the stages were "
            "chosen; which stage runs it would be a guess: let draws drop blocks, and not choose "
            "or reorder them, or put what they choose from into one block"
        )
        raise CaptureError(msg)
