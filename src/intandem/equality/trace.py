"""What every call of a step returned, plain or in tandem, under names that both share."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from intandem.recorder import CallKind
from intandem.recorder.trees import leaves

if TYPE_CHECKING:
    from intandem.recorder import Call, Graph
    from intandem.runtime.observer import Where
    from intandem.runtime.stage import Stage


class Key(NamedTuple):
    """A call, by what the plain model and its recording know of it.

    Attributes:
        name: of the block, or of the function.
        location: of the user's line that calls the function; empty for a block.
        number: how many calls of the same name and location came before.
    """

    name: str
    location: str
    number: int

    @property
    def is_block(self) -> bool:
        """Whether it is a module kept whole."""
        return not self.location


class Result(NamedTuple):
    """What one call returned.

    Attributes:
        tensors: copies, in order.
        stage: which made it; None in one process.
        recomputed: whether it was made again for the backward.
    """

    tensors: tuple[Tensor, ...]
    stage: int | None = None
    recomputed: bool = False


class Trace:
    """Results by call and micro-batch, and which calls draw random numbers.

    Attributes:
        calls: in the order in which they were first made.
        drawing: calls that draw.
        dtypes: in which numbers were computed, the loss included; filled by plain runs only.
    """

    def __init__(self) -> None:
        self.calls: dict[Key, dict[int, list[Result]]] = {}
        self.drawing: set[Key] = set()
        self.dtypes: set[torch.dtype] = set()
        self._passed: Counter[tuple[str, str, int]] = Counter()

    def add(self, key: Key, microbatch: int, result: Result) -> None:
        """Keep one more result."""
        results = self.calls.setdefault(key, {}).setdefault(microbatch, [])
        if not results:
            self._passed[key.name, key.location, microbatch] += 1
        results.append(result)

    def results(self, key: Key, microbatch: int) -> list[Result]:
        """Return what a call returned for a micro-batch: several where it was made again."""
        return self.calls.get(key, {}).get(microbatch, [])

    def num_calls(self, key: Key, microbatch: int) -> int:
        """Return how often a micro-batch passed through this name and location."""
        return self._passed[key.name, key.location, microbatch]


class TandemTrace(Trace):
    """Fills itself as an observer of a pipeline."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._keys: dict[int, tuple[Graph, dict[int, Key]]] = {}

    def on_call(self, stage: Stage, call: Call, result: Any, where: Where) -> None:
        """Keep a copy of what a call returned."""
        with self._lock:
            key = self._keys_of(stage.graph)[id(call)]
            if call.site is not None:
                self.drawing.add(key)
            self.add(key, where.microbatch, Result(copies(result), where.stage, where.recomputed))

    def on_output(self, microbatch: int, output: Any) -> None:
        """Leave outputs to others."""

    def _keys_of(self, graph: Graph) -> dict[int, Key]:
        if id(graph) not in self._keys:
            self._keys[id(graph)] = (graph, _numbered(graph))
        return self._keys[id(graph)][1]


def copies(result: Any) -> tuple[Tensor, ...]:
    """Return copies of the tensors in what a call returned, without their autograd graph."""
    return tuple(leaf.detach().clone() for leaf in leaves(result) if isinstance(leaf, Tensor))


def _numbered(graph: Graph) -> dict[int, Key]:
    seen: Counter[tuple[str, str]] = Counter()
    keys = {}
    for call in graph.calls:
        if call.kind is CallKind.BLOCK:
            keys[id(call)] = Key(call.name, "", call.call)
            continue
        place = (call.name, call.location)
        keys[id(call)] = Key(*place, seen[place])
        seen[place] += 1
    return keys
