"""One cost for all segments that are alike.

A model repeats its blocks. Measured one by one, on a machine that does other things too, they
differ by what disturbed them, and stages would be cut to that. Together they are measured often.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING

from intandem.recorder.cut import reads

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from torch import nn

    from intandem.profiler.segments import SegmentCost
    from intandem.recorder import Graph
    from intandem.recorder.cut import Segment

_MOST = 1.25
"""What disturbs a median of several rounds at most; who differs more, differs."""


def kinds_of(graph: Graph, segments: Sequence[Segment], model: nn.Module) -> list[Hashable]:
    """Return what of each segment decides its cost: equal for blocks that a model repeats."""
    return [
        (
            segment.end == len(graph.calls),  # the loss counts towards the last
            *(_kind(graph, index, model) for index in range(segment.start, segment.end)),
        )
        for segment in segments
    ]


def pooled(costs: Sequence[SegmentCost], kinds: Sequence[Hashable]) -> tuple[SegmentCost, ...]:
    """Give all segments of one kind, with as many operations, the medians of what they took.

    But for those that took a quarter more than the median of their kind, or as much less: modules
    alike in shapes may do different things.

    Args:
        costs: as measured.
        kinds: of the same segments.
    """
    alike: dict[Hashable, list[int]] = defaultdict(list)
    for index, (cost, kind) in enumerate(zip(costs, kinds, strict=True)):
        work = (cost.num_waiting, cost.forward_flops, cost.backward_flops)
        alike[kind, work].append(index)
    found = list(costs)
    for indices in alike.values():
        usual_s = median(_total_s(costs[index]) for index in indices)
        near = [i for i in indices if usual_s <= _MOST * _total_s(costs[i]) <= _MOST**2 * usual_s]
        for index in near:
            found[index] = replace(
                costs[index],
                forward_s=median(costs[i].forward_s for i in near),
                backward_input_s=median(costs[i].backward_input_s for i in near),
                backward_weight_s=median(costs[i].backward_weight_s for i in near),
            )
    return tuple(found)


def _total_s(cost: SegmentCost) -> float:
    return cost.forward_s + cost.backward_s


def _kind(graph: Graph, index: int, model: nn.Module) -> Hashable:
    call = graph.calls[index]
    parameters = [model.get_parameter(name) for name in call.parameters]
    values = [*reads(graph, index), *(value for value in call.outputs if value is not None)]
    return (
        call.name if call.target is not None else type(model.get_submodule(call.name)),
        tuple((p.shape, p.dtype, p.requires_grad) for p in parameters),
        tuple((v.shape, v.dtype, v.requires_grad) for v in map(graph.values.__getitem__, values)),
        call.autocast,
        call.grad_enabled,
    )
