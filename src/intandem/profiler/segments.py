"""Measure how long each segment of a recording takes, forward and backward."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from intandem.recorder.cut import Segment, cut
from intandem.runtime import backward
from intandem.runtime.stage import Draw, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from intandem.recorder.graph import Graph
    from intandem.runtime.losses import LossTerm
    from intandem.runtime.weights import Weights

MAX_ROUNDS = 5
BUDGET_S = 1.0


@dataclass(frozen=True, slots=True)
class SegmentCost:
    """Seconds of one segment on one micro-batch."""

    forward_s: float
    backward_s: float


def measure_segments(
    graph: Graph,
    segments: Sequence[Segment],
    weights: Weights,
    tensors: Sequence[Tensor],
    loss: Callable[[Any], LossTerm],
) -> tuple[SegmentCost, ...]:
    """Run every segment alone, forward and backward, and return medians.

    At least one warm round and one measured round; more, up to ``MAX_ROUNDS``, while they fit
    into ``BUDGET_S`` seconds. Buffers and gradients are left as they were.

    Args:
        graph: a recording of ``tensors``.
        segments: parts of it; together all of it.
        weights: the model's.
        tensors: batch values of the recording.
        loss: of the model's output; counts towards the last segment.
    """
    parts = cut(graph, [segment.start for segment in segments])
    stages = [Stage(graph, part, weights) for part in parts]
    names = {name for stage in stages for name in stage.updates}
    rounds: list[list[SegmentCost]] = []
    began_s = time.perf_counter()
    with weights.gradients_set_aside(), weights.buffers_as(weights.copy_buffers(names)):
        while len(rounds) < 2 or (
            len(rounds) < MAX_ROUNDS and time.perf_counter() - began_s < BUDGET_S
        ):
            rounds.append(_one_round(stages, tensors, loss))
    measured = rounds[1:]
    return tuple(
        SegmentCost(
            median(costs[index].forward_s for costs in measured),
            median(costs[index].backward_s for costs in measured),
        )
        for index in range(len(segments))
    )


def _one_round(
    stages: Sequence[Stage], tensors: Sequence[Tensor], loss: Callable[[Any], LossTerm]
) -> list[SegmentCost]:
    made: dict[int, Tensor] = dict(enumerate(tensors))
    kept: list[backward.Kept] = []
    forward_s: list[float] = []
    for stage in stages:
        start_s = time.perf_counter()
        kept.append(_forward(stage, made, loss))
        _wait_for_device(tensors)
        forward_s.append(time.perf_counter() - start_s)
    gradients: dict[int, Tensor | None] = {}
    backward_s: list[float] = []
    for stage, keep in zip(reversed(stages), reversed(kept), strict=True):
        start_s = time.perf_counter()
        wanted = {v for values in stage.cut.gradients_received.values() for v in values}
        backward.backward(keep, {value: gradients.get(value) for value in wanted})
        gradients.update(keep.entry_gradients)
        _wait_for_device(tensors)
        backward_s.append(time.perf_counter() - start_s)
    pairs = zip(forward_s, reversed(backward_s), strict=True)
    return [SegmentCost(f, b) for f, b in pairs]


def _forward(
    stage: Stage, made: dict[int, Tensor], loss: Callable[[Any], LossTerm]
) -> backward.Kept:
    wanted = {*stage.cut.batch, *(v for values in stage.cut.received.values() for v in values)}
    given: Mapping[int, Tensor] = {value: made[value] for value in wanted}
    environment, kept = backward.enter(stage, given, with_gradients=True)
    stage.run(environment, Draw(0, 0, 0), with_gradients=True)
    backward.leave(stage, environment, kept)
    if stage.cut.returns_output:
        root = loss(stage.output(environment)).root
        kept.ends.append((root, torch.ones_like(root)))
    made.update((value, tensor.detach()) for value, tensor in kept.exits.items())
    return kept


def _wait_for_device(tensors: Sequence[Tensor]) -> None:
    if any(tensor.is_cuda for tensor in tensors):
        torch.cuda.synchronize()
