"""Count what each segment of a recording computes, where it cannot be timed for want of data."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from intandem.profiler.segments import SegmentCost
from intandem.recorder.cut import reads
from intandem.recorder.trees import leaves

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from intandem.recorder import Call, Graph
    from intandem.recorder.cut import Segment

NOMINAL_FLOP_PER_S = 1e12
"""Turns counted operations into the seconds that costs are in; only their ratios matter."""


class OperationMeter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts floating-point operations of each call while a model is recorded.

    Matrix products, convolutions and attention by torch's formulas; everything else, one per
    element that it returns.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.by_call: Counter[int] = Counter()
        self._calls: Sequence[Call] = ()

    @contextmanager
    def during(self, calls: Sequence[Call]) -> Iterator[None]:
        """Count while the context is open.

        Args:
            calls: grows as calls are recorded; what runs belongs to the one that comes next.
        """
        self._calls = calls
        self.by_call.clear()
        with self:
            yield

    @property
    def total(self) -> int:
        """Operations of the whole forward."""
        return sum(self.by_call.values())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.by_call[len(self._calls)] += int(formula(*args, **kwargs, out_val=out))
        elif not func.is_view:
            made = (leaf for leaf in leaves(out) if isinstance(leaf, Tensor))
            self.by_call[len(self._calls)] += sum(tensor.numel() for tensor in made)
        return out


def counted_costs(
    graph: Graph, segments: Sequence[Segment], meter: OperationMeter
) -> tuple[SegmentCost, ...]:
    """Return the cost of every segment at ``NOMINAL_FLOP_PER_S``.

    A backward takes as long as the forward for gradients of activations, and once more for those of
    parameters.

    Args:
        graph: the recording that was metered.
        segments: parts of it; together all of it.
        meter: counted while it was made.
    """
    return tuple(_cost(graph, segment, meter) for segment in segments)


def _cost(graph: Graph, segment: Segment, meter: OperationMeter) -> SegmentCost:
    forward, to_inputs, to_weights = 0, 0, 0
    for index in range(segment.start, segment.end):
        call = graph.calls[index]
        count = meter.by_call[index]
        forward += count
        to_inputs += count * any(graph.values[value].requires_grad for value in reads(graph, index))
        made = [graph.values[value] for value in call.outputs if value is not None]
        is_trained = bool(call.parameters) and any(value.requires_grad for value in made)
        to_weights += count * is_trained
    forward_s, input_s, weight_s = (
        count / NOMINAL_FLOP_PER_S for count in (forward, to_inputs, to_weights)
    )
    return SegmentCost(forward_s, input_s, weight_s)


__all__ = ["NOMINAL_FLOP_PER_S", "OperationMeter", "counted_costs"]
