"""What a model does with the number of labels, told from a recording, where it has no data to run.

The calls between the count and the loss are made again for two counts, with made-up numbers for
whatever else they read: whether a sum is divided by the count shows for any sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from intandem.recorder.graph import Attr, Ref, refs
from intandem.recorder.trees import leaves, map_tree
from intandem.runtime.huggingface import COUNT_NAME, Counting, counting_of

if TYPE_CHECKING:
    from intandem.recorder import Call, Graph, Value


def counting_in(graph: Graph, loss: object) -> Counting:
    """Return what is done with the count between the batch and the loss.

    Args:
        graph: a recording whose batch has a count.
        loss: what stands for the loss in the recording's output.
    """
    count = graph.inputs.index(COUNT_NAME)
    after = _calls_after(graph, count)
    if not isinstance(loss, Ref) or graph.values[loss.value].producer not in after:
        return Counting.IGNORES
    calls = [graph.calls[index] for index in sorted(after)]
    if any(call.target is None or call.written or _attributes(call) for call in calls):
        return Counting.MIXES

    def loss_given(number: int) -> float:
        made = {count: torch.tensor(number)}
        for call in calls:
            _again(graph, call, made)
        return float(made[loss.value])

    return counting_of(loss_given)


def _calls_after(graph: Graph, value: int) -> set[int]:
    """Return the calls whose results depend on ``value``."""
    reached, found = {value}, set()
    for index, call in enumerate(graph.calls):
        read = {*refs(call.args, call.kwargs), *(old for old, _ in call.renewed)}
        if reached & (read - set(call.unread)):
            found.add(index)
            reached |= {v for v in call.outputs if v is not None} | {v for _, v in call.inner}
            reached |= {new for _, new in call.renewed}
    return found


def _attributes(call: Call) -> bool:
    return any(isinstance(leaf, Attr) for leaf in leaves((call.args, call.kwargs)))


def _again(graph: Graph, call: Call, made: dict[int, Tensor]) -> None:
    def fill(leaf: Any) -> Any:
        if not isinstance(leaf, Ref):
            return leaf
        if leaf.value not in made:
            made[leaf.value] = _made_up(graph.values[leaf.value], leaf.value)
        return made[leaf.value]

    args, kwargs = map_tree(fill, (call.args, call.kwargs))
    if call.target is not None:
        results = leaves(call.target(*args, **kwargs))
        made.update((v, r) for v, r in zip(call.outputs, results, strict=True) if v is not None)


def _made_up(value: Value, number: int) -> Tensor:
    return torch.full(value.shape, 3 + number % 5, dtype=value.dtype)
