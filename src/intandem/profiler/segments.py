"""Measure how long each segment of a recording takes: F, I and W."""

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
    """What one segment takes on one micro-batch.

    Attributes:
        forward_s: seconds of F.
        backward_input_s: seconds of I.
        backward_weight_s: seconds of W.
        num_waiting: elements of parameters whose gradients wait for W; those of all others come
            with I. None where it was not looked at.
        forward_flops: floating-point operations of F in matrix products, convolutions and
            attention; None where they were not counted.
        backward_flops: of I and W together.
    """

    forward_s: float
    backward_input_s: float
    backward_weight_s: float
    num_waiting: int | None = None
    forward_flops: int | None = None
    backward_flops: int | None = None

    @property
    def backward_s(self) -> float:
        """Seconds of B, which is I and W."""
        return self.backward_input_s + self.backward_weight_s


def measure_segments(
    graph: Graph,
    segments: Sequence[Segment],
    weights: Weights,
    tensors: Sequence[Tensor],
    loss: Callable[[Any], LossTerm],
) -> tuple[SegmentCost, ...]:
    """Run F, I and W of every segment alone, and return medians.

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
            median(costs[index].backward_input_s for costs in measured),
            median(costs[index].backward_weight_s for costs in measured),
            measured[-1][index].num_waiting,
        )
        for index in range(len(segments))
    )


def _one_round(
    stages: Sequence[Stage], tensors: Sequence[Tensor], loss: Callable[[Any], LossTerm]
) -> list[SegmentCost]:
    made: dict[int, Tensor] = dict(enumerate(tensors))
    clock = _Clock(next((tensor.device for tensor in tensors if tensor.is_cuda), None))
    kept: list[backward.Kept] = []
    forward_s: list[float] = []
    for stage in stages:
        clock.lap_s()
        kept.append(run_forward(stage, made, loss))
        forward_s.append(clock.lap_s())
    gradients: dict[int, Tensor | None] = {}
    costs: list[SegmentCost] = []
    for stage, keep, seconds in zip(stages[::-1], kept[::-1], forward_s[::-1], strict=True):
        wanted = {v for values in stage.cut.gradients_received.values() for v in values}
        arrived = {value: gradients.get(value) for value in wanted}
        clock.lap_s()
        pending = backward.backward_inputs(keep, arrived)
        input_s = clock.lap_s()
        waiting = {id(term.leaf): term.leaf.numel() for term in pending.terms}
        clock.lap_s()
        backward.backward_weights(pending)
        weight_s = clock.lap_s()
        costs.append(SegmentCost(seconds, input_s, weight_s, sum(waiting.values())))
        gradients.update(keep.entry_gradients)
    return costs[::-1]


class _Clock:
    """Tells the seconds since it was last asked, when a GPU has finished what it was given."""

    def __init__(self, gpu: torch.device | None) -> None:
        self._gpu = gpu
        self._since_s = time.perf_counter()

    def lap_s(self) -> float:
        """Return the seconds since the last call, and start anew."""
        if self._gpu is not None:
            torch.cuda.synchronize(self._gpu)
        now_s = time.perf_counter()
        lap_s, self._since_s = now_s - self._since_s, now_s
        return lap_s


def run_forward(
    stage: Stage, made: dict[int, Tensor], loss: Callable[[Any], LossTerm]
) -> backward.Kept:
    """Run F of a stage on what those before it made, and add what it makes."""
    wanted = {*stage.cut.batch, *(v for values in stage.cut.received.values() for v in values)}
    given: Mapping[int, Tensor] = {value: made[value] for value in wanted}
    environment, kept = backward.enter(stage, given, with_gradients=True)
    stage.run(environment, Draw(0, 0, 0), with_gradients=True)
    backward.leave(stage, environment, kept)
    if stage.cut.returns_output:
        root = loss(stage.output(environment)).root
        kept.ends.append((root, torch.ones_like(root)))
    sent = {value for values in stage.cut.sent.values() for value in values}
    made.update((value, environment[value].detach()) for value in sent)
    return kept
