"""What a pipeline learns of a model before it cuts it: a recording, its parts, the loss."""

from __future__ import annotations

import functools
import logging
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from intandem.pipeline.chances import fullest
from intandem.pipeline.materialise import lacks_parameters
from intandem.pipeline.stages import check_num_stages, check_stages_by_hand
from intandem.profiler.counted import OperationMeter
from intandem.recorder.capture import Run, left_as_it_was, record
from intandem.recorder.cut import Segment, segments
from intandem.recorder.python_state import attributes_kept
from intandem.recorder.repetition import check_repeated
from intandem.runtime.loss_guard import LeftBehind, Origin, tensors_in_attributes
from intandem.runtime.losses import WholeBatchLoss, function_of, loss_term
from intandem.runtime.stage import Draw
from intandem.runtime.weights import Weights
from intandem.runtime.whole_batch import Joining, find_ways

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from intandem.ir import Placement
    from intandem.pipeline.request import Request
    from intandem.recorder import Arguments, Graph
    from intandem.runtime.losses import LossTerm


_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Subject:
    """What is to be cut: the first recording of a model on an example.

    Attributes:
        request: what the user asked for.
        graph: the recording; where draws decide what is called, the fullest.
        segments: what the model can be cut into.
        example: a micro-batch.
        joining: how outputs are joined where the loss is the whole batch's; else None.
        meter: counted operations, where there is no data to time; else None.
        usual: the recording of the example with its own draws.
    """

    request: Request
    graph: Graph
    segments: tuple[Segment, ...]
    example: Any
    joining: Joining | None
    meter: OperationMeter | None
    usual: Run

    def loss(self, output: Any) -> LossTerm:
        """Return the loss of the example; of a whole batch, of the example twice."""
        batch = self.example
        if self.joining is not None:
            output, batch = self.joining.output([output] * 2), self.joining.batch([batch] * 2)
        with _kept_as_it_is(self.request.loss):
            return loss_term(output, batch, self.request.loss)


@dataclass(frozen=True, slots=True)
class Study:
    """A subject, and the loss of its example."""

    subject: Subject
    loss: LossTerm


def study(
    request: Request, example: Any, bind: Callable[[Any], Arguments], placement: Placement
) -> Study:
    """Record the model on a micro-batch and see what it can be cut into and what its loss is.

    Args:
        request: what the user asked for.
        example: a micro-batch.
        bind: turns it into arguments.
        placement: of the stages that it is to be cut into.

    Raises:
        CaptureError: if the model cannot be recorded, or not cut into as many stages.
        LossError: if there is no usable loss.
    """
    began_s, model = time.perf_counter(), request.model
    before = tensors_in_attributes(model)
    meter = OperationMeter() if lacks_parameters(model) else None
    with torch.enable_grad(), attributes_kept(model):
        copied = bool(placement.replicas)
        usual = _recorded(request, example, bind, meter, copied=copied)
        first = fullest(request, example, bind, usual)
        left = LeftBehind(before, tensors_in_attributes(model))
        found = segments(first.graph)
        check_stages_by_hand(model, found, placement.num_stages)
        check_num_stages(found, placement)
        joining = _joining(request, first.output, example, bind)
        subject = Subject(request, first.graph, found, example, joining, meter, usual)
        loss = _example_loss(subject, first.output, Weights(model, first.graph), left)
    _log.info(
        "studied the model in %.3f s: %d calls, %d segments to cut it into, and the loss",
        time.perf_counter() - began_s, len(first.graph.calls), len(found),
    )  # fmt: skip
    return Study(subject, loss)


def _recorded(
    request: Request,
    example: Any,
    bind: Callable[[Any], Arguments],
    meter: OperationMeter | None,
    *,
    copied: bool,
) -> Run:
    """Record the model, twice, to see that what it does is the same each time.

    Where forwards run again in backward, or for some micro-batches on another rank, state in
    attributes of blocks would advance twice, or not everywhere, so that
    it is let run from one recording to the next, and is seen. Attributes are left as the second
    leaves them. Without parameters there are no numbers to compare.
    """
    model, blocks, kept = request.model, request.blocks, not (request.recomputes or copied)
    again = functools.partial(
        record, model, example, bind, blocks=blocks, draws=Draw(request.options.seed, 0, 0)
    )
    if meter is not None:
        return again(meter=meter, keeps_attributes=False)._replace(tensors=())
    first = again(keeps_attributes=kept)
    check_repeated(first, again(keeps_attributes=False).detached())
    return first._replace(tensors=())


def _joining(
    request: Request, output: Any, example: Any, bind: Callable[[Any], Arguments]
) -> Joining | None:
    """See where rows are in the output, by recording the model on the example twice over."""
    if not isinstance(request.loss, WholeBatchLoss):
        return None
    twice = Joining(request.split, {}).batch([example] * 2)
    second = record(request.model, twice, bind, blocks=request.blocks)
    return Joining(request.split, find_ways(output, second.output))


def _example_loss(subject: Subject, output: Any, weights: Weights, left: LeftBehind) -> LossTerm:
    """Return the loss of the first recording, once it is known to come from the output alone."""
    if subject.request.loss is None:
        return subject.loss(output)
    origin = Origin(output)
    with left:
        loss = subject.loss(output)
    origin.check(loss.root, weights.name_of)
    return loss


def _kept_as_it_is(loss: object) -> AbstractContextManager[object]:
    """Put a loss module's buffers back: building calls it, and it is not a step."""
    loss = function_of(loss)
    return left_as_it_was(loss) if isinstance(loss, nn.Module) else nullcontext()
