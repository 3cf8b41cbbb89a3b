"""Recordings of the model, found again for every micro-batch that they hold for."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from intandem.errors import CaptureError
from intandem.recorder import refusals
from intandem.recorder.blocks import Open, find_blocks
from intandem.recorder.capture import record
from intandem.recorder.code_state import CodeState
from intandem.recorder.cut import Cuts, StageGraph, cut, links_of, reads, same_cuts
from intandem.recorder.graph import refs
from intandem.recorder.replicable import check_replicable
from intandem.recorder.trees import leaves, named_leaves
from intandem.runtime.model_state import state_of
from intandem.runtime.recording_notes import RecordingNotes
from intandem.runtime.stage import Draw, Stage
from intandem.runtime.transport.protocol import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Sequence

    from torch import nn

    from intandem.ir import StageLinks
    from intandem.recorder import Arguments, Graph
    from intandem.recorder.capture import Run
    from intandem.runtime.model_state import ModelState
    from intandem.runtime.recording_notes import RecordingNote
    from intandem.runtime.transport.protocol import Contract, Seen
    from intandem.runtime.weights import Weights


BatchKey = tuple[tuple["Hashable", ...], ...]
"""Names of leaves, with shape, dtype and device, or with their text."""

_MAX_KEYS = 64
"""Shapes and modes that recordings are kept for; the oldest goes first."""
_MAX_PATHS = 64
"""Recordings that are kept for one of them, which guards tell apart."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A recording, cut into stages and ready to run.

    Attributes:
        graph: the recording.
        cuts: every stage's part of it.
        stages: the stages that this process runs, by number and replica.
        links: which stages hand values to which.
        guard_stage: computes what guards look at; None when there are no guards.
        contracts: what messages look like, by source and target stage.
        seen: what the transport has learned of messages of micro-batches whose loss counts for
            nothing, and of others.
    """

    graph: Graph
    cuts: tuple[StageGraph, ...]
    stages: dict[tuple[int, int], Stage]
    links: StageLinks
    guard_stage: Stage | None
    contracts: dict[tuple[int, int], Contract]
    seen: tuple[Seen, Seen] = field(default_factory=lambda: ({}, {}), compare=False)

    def tensors_of(self, batch: Any) -> dict[int, Tensor]:
        """Return the batch values of the recording, by number; ``forward`` reads no others."""
        named = dict(named_leaves(batch))
        return {v: named[name] for v, name in enumerate(self.graph.inputs) if name in named}

    def holds_for(self, batch: Any, draw: Draw) -> bool:
        """Tell whether every guard has the outcome it had when recorded.

        Args:
            batch: a micro-batch.
            draw: keys its random draws, which guards may look at.
        """
        if self.guard_stage is None:
            return True
        environment = self.tensors_of(batch)
        self.guard_stage.run(environment, draw, with_gradients=False)
        return all(
            self.guard_stage.call_again(guard, environment) == guard.outcome
            for guard in self.graph.guards
        )


@dataclass(slots=True)
class _Known:
    """A recording that is kept.

    Attributes:
        recorded: ready to run.
        note: notes it; called when it is used first.
        index: of its note, once there is one.
    """

    recorded: Recorded
    note: Callable[[], int]
    index: int | None = None

    def use(self) -> int:
        """Return the index of its note."""
        if self.index is None:
            self.index = self.note()
        return self.index


class Recordings:
    """All recordings of one model, cut alike.

    Args:
        model: the user's module.
        bind: turns a micro-batch into arguments.
        weights: finds what calls use.
        cuts: where the first recording is cut.
        own_stages: (stage, replica) of every stage that this process runs.
        blocks: modules to keep whole besides those found.
    """

    def __init__(
        self,
        model: nn.Module,
        bind: Callable[[Any], Arguments],
        weights: Weights,
        cuts: Cuts,
        own_stages: Collection[tuple[int, int]],
        blocks: Sequence[str | type[nn.Module] | Open] = (),
    ) -> None:
        self._model = model
        self._named_blocks = tuple(blocks)
        self._blocks = find_blocks(model, blocks)
        self._code = CodeState(model)
        self._bind = bind
        self._weights = weights
        self._cuts = cuts
        self._own_stages = tuple(own_stages)
        self._known: dict[Hashable, list[_Known]] = {}
        self._notes = RecordingNotes()
        self._updated: dict[tuple[bool, ...], set[str]] = {}
        self._num_not_kept = 0
        self.before_recording: Callable[[], None] = lambda: None
        """Called before the model is run to be recorded."""

    @property
    def num_recordings(self) -> int:
        """How many have been used, once or more."""
        return len(self._notes) + self._num_not_kept

    def expect(self, batch: Any, draw: Draw) -> None:
        """Make a recording for ``batch`` if there is none; noted when it is used. See ``find``."""
        self._find(batch, draw, self.state(), None, {}, is_used=False)

    def find(self, batch: Any, draw: Draw, made: Run | None = None) -> Recorded:
        """Return a recording that holds for ``batch``, made now if there is none.

        The current gradient and autocast modes of this thread and the modules' training flags
        are part of what a recording is for.

        Args:
            batch: a micro-batch.
            draw: keys its random draws.
            made: a recording of it with these draws, if there is one.

        Raises:
            CaptureError: if a new recording is needed and cannot be made or cut alike.
        """
        return self._find(batch, draw, self.state(), made, {})[1]

    def find_all(
        self, batches: Sequence[Any], draws: tuple[int, int], state: ModelState
    ) -> list[Recorded]:
        """Return the recordings for the micro-batches of one pass; see ``find``.

        Args:
            batches: micro-batches, in order.
            draws: seed and step, which key their random draws.
            state: as it is now; see ``state``.
        """
        alike: dict[BatchKey, Sequence[_Known]] = {}
        found = [
            self._find(batch, Draw(*draws, index), state, None, alike)
            for index, batch in enumerate(batches)
        ]
        for index, _ in found:
            if index is not None:
                self._notes.use(index)
        return [recorded for _, recorded in found]

    def state(self) -> ModelState:
        """Return what recordings are for besides a batch, as it is now."""
        return state_of(self._model, self._blocks, self._code)

    def facts(self, state: ModelState) -> dict[str, str]:
        """Return a state in words."""
        return state.facts(self._model)

    def notes(self) -> tuple[RecordingNote, ...]:
        """Return what recordings there are, why, and what they cost."""
        return self._notes.notes()

    def _find(
        self,
        batch: Any,
        draw: Draw,
        state: ModelState,
        made: Run | None,
        alike: dict[BatchKey, Sequence[_Known]],
        *,
        is_used: bool = True,
    ) -> tuple[int | None, Recorded]:
        """Find a recording; ``alike`` keeps those of a state, which takes long to look up."""
        given = key_of_batch(batch, self._bind(batch))
        if given not in alike and (known := self._known.get((state, given))):
            alike[given] = known
        for one in alike.get(given, ()):
            if one.recorded.holds_for(batch, draw):
                return one.use() if is_used else None, one.recorded
        began_s = time.perf_counter() - (made.seconds if made else 0.0)
        training = tuple(module.training for module in self._model.modules())
        updated = self._updated.setdefault(training, set())
        if made is None:
            blocks = self._named_blocks
            self.before_recording()
            try:
                made = record(self._model, batch, self._bind, updated, blocks, draws=draw)
            except CaptureError as error:
                if (refused := self._refused_again(error)) is error:
                    raise
                raise refused from error
        recorded = self.add(made.graph)
        updated.update(name for call in recorded.graph.calls for name in call.updates)
        if made.graph.draws_python:
            self._num_not_kept += is_used
            return None, recorded
        seconds = time.perf_counter() - began_s
        facts = {**self.facts(state), **state.code_in_words()}
        guards = recorded.graph.guards
        made_now = _Known(
            recorded, partial(self._notes.add, _in_words(given), facts, guards, seconds)
        )
        key = (self.state(), given)  # [Note: set once] may have marked the model
        self._known.setdefault(key, []).append(made_now)
        del self._known[key][:-_MAX_PATHS]
        if len(self._known) > _MAX_KEYS:
            del self._known[next(iter(self._known))]
        return made_now.use() if is_used else None, recorded

    def _refused_again(self, error: CaptureError) -> CaptureError:
        """Say what may have to do with it, as the model could be recorded before."""
        opened = [one.name for one in self._named_blocks if isinstance(one, Open)]
        if not opened or "cut inside" in str(error):
            return error
        return CaptureError(f"{error} ({refusals.kept_whole(opened)})")

    def expect_updates(self, graph: Graph) -> None:
        """Take the buffers that ``graph`` updates for updated in this mode's other recordings."""
        training = tuple(module.training for module in self._model.modules())
        updates = (name for call in graph.calls for name in call.updates)
        self._updated.setdefault(training, set()).update(updates)

    def add(self, graph: Graph) -> Recorded:
        """Cut a recording as all others are and make its stages."""
        if self._weights.num_replicas > 1:
            check_replicable(graph)
        cuts = cut(graph, same_cuts(graph, self._cuts))
        stages = {(s, r): Stage(graph, cuts[s], self._weights, r) for s, r in self._own_stages}
        guard_stage = _guard_stage(graph, self._weights)
        contracts = _contracts(graph, cuts)
        return Recorded(graph, cuts, stages, links_of(cuts), guard_stage, contracts)


def key_of_batch(batch: Any, arguments: Arguments) -> BatchKey:
    """Return what a recording depends on in a batch, besides guards.

    Args:
        batch: a micro-batch.
        arguments: what ``forward`` is given of it; the rest is for the loss.
    """
    given = {id(leaf) for leaf in leaves((arguments.args, arguments.kwargs))}
    found: list[tuple[Hashable, ...]] = []
    for name, leaf in sorted(named_leaves(batch), key=lambda pair: pair[0]):
        if id(leaf) not in given:
            continue
        if isinstance(leaf, Tensor):
            found.append((name, leaf.shape, leaf.dtype, leaf.device))
        else:
            found.append((name, repr(leaf)))
    return tuple(found)


def _in_words(given: BatchKey) -> dict[str, str]:
    """Return what ``forward`` is given in words, by name."""
    return {
        str(name): " ".join(str(tuple(v) if isinstance(v, torch.Size) else v) for v in values[:2])
        for name, *values in given
    }


def _contracts(graph: Graph, cuts: Sequence[StageGraph]) -> dict[tuple[int, int], Contract]:
    def contract(values: Sequence[int]) -> Contract:
        facts = (graph.values[value] for value in values)
        return tuple(TensorSpec(value.shape, value.dtype) for value in facts)

    forward = {(c.stage, t): contract(v) for c in cuts for t, v in c.sent.items()}
    backward = {(c.stage, t): contract(v) for c in cuts for t, v in c.gradients_sent.items()}
    return forward | backward


def _guard_stage(graph: Graph, weights: Weights) -> Stage | None:
    if not graph.guards:
        return None
    wanted = {v for guard in graph.guards for v in refs(guard.args, guard.kwargs)}
    calls: set[int] = set()
    open_values = list(wanted)
    while open_values:
        producer = graph.values[open_values.pop()].producer
        if producer >= 0 and producer not in calls:
            calls.add(producer)
            open_values += reads(graph, producer)
    batch = {v for index in calls for v in reads(graph, index) if graph.values[v].producer < 0}
    batch |= {v for v in wanted if graph.values[v].producer < 0}
    part = StageGraph(
        stage=-1,
        calls=tuple(sorted(calls)),
        batch=tuple(sorted(batch)),
        copied=frozenset(),
        received={},
        sent={-1: tuple(sorted(wanted))},
        gradients_received={},
        gradients_sent={},
        returns_output=False,
    )
    return Stage(graph, part, weights)
