"""What every segment's forward computes, and what it keeps for the backward."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from intandem.profiler.segments import run_forward
from intandem.recorder.cut import cut
from intandem.runtime.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from intandem.recorder.cut import Segment, StageGraph
    from intandem.recorder.graph import Graph
    from intandem.runtime.losses import LossTerm
    from intandem.runtime.weights import Weights

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SegmentUse:
    """What one segment does with one micro-batch.

    Attributes:
        forward_flops: floating-point operations in matrix products, convolutions and attention.
        backward_flops: as many for gradients of what it was given, if they are wanted, and as many
            for those of parameters.
        kept: bytes of each piece of memory that its backward needs, parameters and the batch aside,
            by address.
    """

    forward_flops: int
    backward_flops: int
    kept: dict[int, int]


@dataclass(frozen=True, slots=True)
class Uses:
    """What all segments do, and where values lie that a stage might be given or send.

    Attributes:
        segments: in order.
        places: by value, address and bytes of its memory.
    """

    segments: tuple[SegmentUse, ...]
    places: dict[int, tuple[int, int]]

    def kept_bytes(self, stage: StageGraph, segments: range) -> int:
        """Return what a stage keeps of a micro-batch until its backward has run.

        That is what its segments' backwards need, and what it received and sends a gradient of, as
        autograd ends there. Memory counts once.

        Args:
            stage: of the model as it is cut.
            segments: that it consists of.
        """
        values = [value for values in stage.gradients_sent.values() for value in values]
        together = dict(self.places[value] for value in values)
        for index in segments:
            together |= self.segments[index].kept
        return sum(together.values())


def use_of_segments(
    graph: Graph,
    segments: Sequence[Segment],
    weights: Weights,
    tensors: Sequence[Tensor],
    loss: Callable[[Any], LossTerm],
) -> Uses | None:
    """Run the forward of every segment once; see ``measure_segments``.

    Returns:
        None where PyTorch does not let it be watched (``torch.func`` in the forward refuses hooks
        on saved tensors).
    """
    stages = [Stage(graph, part, weights) for part in cut(graph, [s.start for s in segments])]
    names = {name for stage in stages for name in stage.updates}
    made: dict[int, Tensor] = dict(enumerate(tensors))
    batch = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    held, found = [], []
    try:
        # as written: what a compiler meets under a watch it refuses to compile, ever after
        with (
            weights.buffers_as(weights.copy_buffers(names)),
            torch.compiler.set_stance("force_eager"),
        ):
            for stage in stages:
                watch = _Watch(stage, weights, batch)
                with watch, torch.autograd.graph.saved_tensors_hooks(watch.keep, _as_it_is):
                    held.append(run_forward(stage, made, loss))  # kept, so that addresses stay
                found.append(watch.use(wants_inputs=bool(held[-1].entries)))
    except RuntimeError as error:
        _log.info("what forwards keep is not known: %s", error)
        return None
    storages = {value: tensor.untyped_storage() for value, tensor in made.items()}
    return Uses(tuple(found), {v: (s.data_ptr(), s.nbytes()) for v, s in storages.items()})


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations of one segment, and the memory that it keeps."""

    def __init__(self, stage: Stage, weights: Weights, batch: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        names = {name for i in stage.cut.calls for name in stage.graph.calls[i].parameters}
        parameters = [weights.parameter(name) for name in names]
        self._trains = any(parameter.requires_grad for parameter in parameters)
        self._others = batch | {p.untyped_storage().data_ptr() for p in parameters}
        self._flops = 0
        self._kept: dict[int, int] = {}

    def keep(self, tensor: Tensor) -> Tensor:
        """Take note of a tensor that is saved for the backward, and return what is to be saved.

        Not the tensor: a result that is saved would hold the graph that holds it, for ever.
        """
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._others:
            self._kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    def use(self, *, wants_inputs: bool) -> SegmentUse:
        """Return what was seen."""
        times = int(wants_inputs) + int(self._trains)
        return SegmentUse(self._flops, times * self._flops, self._kept)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if formula := flop_registry.get(func._overloadpacket):
            self._flops += int(formula(*args, **kwargs, out_val=out))
        return out


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
