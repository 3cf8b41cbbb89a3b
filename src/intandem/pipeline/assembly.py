"""Puts a pipeline together: record, measure, cut, free what is others', connect."""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from intandem.errors import LossError, RunError
from intandem.ir import StageLinks
from intandem.pipeline.chances import fullest
from intandem.pipeline.home import Home, place
from intandem.pipeline.materialise import lacks_parameters, materialise_parameters
from intandem.pipeline.ownership import (
    buffer_owners,
    free_parameters,
    owners_of,
    tied_parameters,
)
from intandem.pipeline.programs import Programs
from intandem.pipeline.stages import (
    StagePlan,
    balanced_starts,
    check_num_stages,
    check_stages_by_hand,
    named_starts,
)
from intandem.profiler.counted import NOMINAL_FLOP_PER_S, OperationMeter, counted_costs
from intandem.profiler.segments import measure_segments
from intandem.recorder.capture import Run, left_as_it_was, record
from intandem.recorder.cut import Cuts, Segment, cut, segments
from intandem.recorder.python_state import attributes_kept
from intandem.recorder.repetition import check_repeated
from intandem.recorder.trees import named_leaves
from intandem.runtime.loss_guard import LeftBehind, Origin, tensors_in_attributes
from intandem.runtime.losses import WholeBatchLoss, loss_term
from intandem.runtime.recordings import Recorded, Recordings
from intandem.runtime.stage import Draw
from intandem.runtime.tied import TiedGradients
from intandem.runtime.weights import Weights
from intandem.runtime.whole_batch import Joining, find_ways

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from intandem.ir import Placement
    from intandem.pipeline.materialise import Source
    from intandem.pipeline.request import Request
    from intandem.profiler.segments import SegmentCost
    from intandem.recorder import Arguments, Graph
    from intandem.runtime.losses import LossTerm
    from intandem.runtime.ranks import Ranks

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Assembly:
    """A pipeline's parts, ready to run.

    Attributes:
        home: where this process's ranks run.
        ranks: executes passes.
        recordings: finds the recording for a micro-batch.
        programs: finds the program for a pass.
        weights: the model's parameters and buffers.
        placement: stage to rank.
        plan: where the model is cut, and expected costs.
        segments: what the model can be cut into.
        example: the first recording, cut.
        holders_of: ranks that hold each parameter; the first answers for it.
        updater_of: rank that updates each buffer; others are equal everywhere.
        loss_is_sum: whether the loss function returns a ``LossSum``.
        joining: how outputs are joined where the loss is the whole batch's; else None.
    """

    home: Home
    ranks: Ranks
    recordings: Recordings
    programs: Programs
    weights: Weights
    placement: Placement
    plan: StagePlan
    segments: tuple[Segment, ...]
    example: Recorded
    holders_of: dict[str, tuple[int, ...]]
    updater_of: dict[str, int]
    loss_is_sum: bool
    joining: Joining | None


def assemble(
    request: Request,
    examples: Sequence[Any],
    home: Home,
    bind: Callable[[Any], Arguments],
    source: Source | None = None,
) -> Assembly:
    """Build everything a pipeline needs.

    Args:
        request: what the user asked for.
        examples: the example's micro-batches.
        home: where this process's ranks run.
        bind: turns a micro-batch into arguments.
        source: fills this process's parameters; None where they are filled.

    Raises:
        CaptureError: if the model cannot be recorded or cut.
        LossError: if there is no usable loss.
        RunError: if the processes cannot be connected, or built different models.
    """
    model, num_ranks, example = request.model, home.num_ranks, examples[0]
    placement = request.build_schedule(num_ranks, request.num_microbatches(num_ranks)).placement
    before = tensors_in_attributes(model)
    meter = OperationMeter() if lacks_parameters(model) else None
    with torch.enable_grad(), attributes_kept(model):
        usual = _recorded(request, example, bind, meter)
        first = fullest(request, example, bind, usual)
        left = LeftBehind(before, tensors_in_attributes(model))
        graph, found = first.graph, segments(first.graph)
        check_stages_by_hand(model, found, placement.num_stages)
        check_num_stages(found, placement.num_stages)
        refuse_trained_loss(request.loss)
        joining = _joining(request, first.output, example, bind)
        subject = _Subject(request, graph, found, example, joining, source, meter)
        loss = _example_loss(subject, first.output, Weights(model, graph), left)
    plan = _agree_on_plan(subject, home, placement.num_stages)
    cuts = cut(graph, [found[index].start for index in plan.starts])
    holders_of = owners_of(graph, cuts, placement)
    if source is not None:
        materialise_parameters(model, source, _held_by(home, holders_of), home.device)
    weights = Weights(model, graph)
    order = [name for name, _ in model.named_parameters()]
    tied = TiedGradients(weights, tied_parameters(graph, cuts, placement, order))
    recordings = Recordings(
        model,
        bind,
        weights,
        Cuts(tuple((segment.name, segment.call) for segment in found), tuple(plan.starts)),
        [s for s, rank in enumerate(placement.rank_of) if rank in home.own_ranks],
        request.blocks,
    )
    recordings.expect_updates(graph)
    with torch.enable_grad():
        draw = Draw(request.options.seed, 0, 0)
        recorded = recordings.find(example, draw, None if meter else usual)
    if home.membership is not None:
        _record_all(model, recordings, examples, draw)
        free_parameters(model, _held_by(home, holders_of))
        place(model, home.device)
    edges = _edges(recorded, placement) | tied.edges()
    return Assembly(
        home=home,
        ranks=home.start(weights, tied, edges, request.options.timeout_s),
        recordings=recordings,
        programs=Programs(request, num_ranks, reduces=tied.any),
        weights=weights,
        placement=placement,
        plan=plan,
        segments=found,
        example=recorded,
        holders_of=holders_of,
        updater_of=buffer_owners(graph, cuts, placement),
        loss_is_sum=loss.count is not None,
        joining=joining,
    )


def _recorded(
    request: Request,
    example: Any,
    bind: Callable[[Any], Arguments],
    meter: OperationMeter | None,
) -> Run:
    """Record the model, twice, to see that what it does is the same each time.

    Where forwards run again in backward, state in attributes of blocks would advance twice, so that
    it is let run from one recording to the next, and is seen. Attributes are left as the second
    leaves them. Without parameters there are no numbers to compare.
    """
    model, blocks, kept = request.model, request.blocks, not request.recomputes
    again = functools.partial(
        record, model, example, bind, blocks=blocks, draws=Draw(request.options.seed, 0, 0)
    )
    if meter is not None:
        return again(meter=meter, keeps_attributes=False)._replace(tensors=())
    first = again(keeps_attributes=kept)
    check_repeated(first, again(keeps_attributes=False).detached())
    return first._replace(tensors=())


def _record_all(
    model: nn.Module, recordings: Recordings, examples: Sequence[Any], draw: Draw
) -> None:
    """Record what is to be expected while all parameters are still here: uneven parts as well."""
    for part in examples:
        with torch.enable_grad():
            recordings.find(part, draw)
        with evaluating(model):
            recordings.find(part, draw)


@dataclass(frozen=True, slots=True)
class _Subject:
    """What is to be cut: the first recording of a model on an example."""

    request: Request
    graph: Graph
    segments: tuple[Segment, ...]
    example: Any
    joining: Joining | None
    source: Source | None
    meter: OperationMeter | None

    def loss(self, output: Any) -> LossTerm:
        """Return the loss of the example; of a whole batch, of the example twice."""
        batch = self.example
        if self.joining is not None:
            output, batch = self.joining.output([output] * 2), self.joining.batch([batch] * 2)
        with _kept_as_it_is(self.request.loss):
            return loss_term(output, batch, self.request.loss)


def _joining(
    request: Request, output: Any, example: Any, bind: Callable[[Any], Arguments]
) -> Joining | None:
    """See where rows are in the output, by recording the model on the example twice over."""
    if not isinstance(request.loss, WholeBatchLoss):
        return None
    twice = Joining(request.split, {}).batch([example] * 2)
    second = record(request.model, twice, bind, blocks=request.blocks)
    return Joining(request.split, find_ways(output, second.output))


def _example_loss(subject: _Subject, output: Any, weights: Weights, left: LeftBehind) -> LossTerm:
    """Return the loss of the first recording, once it is known to come from the output alone."""
    if subject.request.loss is None:
        return subject.loss(output)
    origin = Origin(output)
    with left:
        loss = subject.loss(output)
    origin.check(loss.root, weights.name_of)
    return loss


def _agree_on_plan(subject: _Subject, home: Home, num_stages: int) -> StagePlan:
    """Return rank 0's plan, on every rank, if all have built the same model."""
    identity = _identity(subject.graph, subject.request.model, subject.source)
    if not home.is_first:
        theirs, _, encoded = home.agree("plan", None).partition(b"\n")
        if theirs != identity:
            msg = (
                f"rank {home.own_ranks[0]} built another model than rank 0, or gave it another "
                "example; build both alike on every rank, after torch.manual_seed(...)"
            )
            raise RunError(msg)
        return StagePlan.decode(encoded)
    plan = _plan(subject, num_stages, home.threads_per_rank)
    home.agree("plan", identity + b"\n" + plan.encode())
    return plan


def _plan(subject: _Subject, num_stages: int, num_threads: int) -> StagePlan:
    request, found = subject.request, subject.segments
    costs = _costs(subject, num_threads)
    if request.first_modules is None:
        return StagePlan(balanced_starts(found, costs, num_stages), costs)
    return StagePlan(named_starts(found, request.first_modules, num_stages), costs)


def _costs(subject: _Subject, num_threads: int) -> tuple[SegmentCost, ...]:
    """Return what every segment costs: measured, or counted where there is no data to run on."""
    request, found = subject.request, subject.segments
    if subject.meter is not None:
        _log.info(
            "the model has no data yet, so costs are counted, not measured: %d operations in the "
            "forward of a micro-batch, at %g per second",
            subject.meter.total, NOMINAL_FLOP_PER_S,
        )  # fmt: skip
        return counted_costs(subject.graph, found, subject.meter)

    named = dict(named_leaves(subject.example))
    tensors: list[Tensor] = [named[name] for name in subject.graph.inputs]
    weights = Weights(request.model, subject.graph)  # for now: it holds on to other ranks' stages
    with _threads(num_threads), torch.enable_grad(), attributes_kept(request.model):
        return measure_segments(subject.graph, found, weights, tensors, subject.loss)


def refuse_trained_loss(loss: object) -> None:
    """Refuse a loss module with parameters: nobody would hold, clip or step them.

    Raises:
        LossError: naming them.
    """
    loss = _function_of(loss)
    if isinstance(loss, nn.Module):
        names = [name for name, p in loss.named_parameters() if p.requires_grad]
        if names:
            msg = (
                f"the loss has parameters of its own ({', '.join(names[:4])}), which a pipeline "
                "does not hold; make it part of the model, whose output can carry `loss`"
            )
            raise LossError(msg)


def _function_of(loss: object) -> object:
    return loss.function if isinstance(loss, WholeBatchLoss) else loss


def _kept_as_it_is(loss: object) -> AbstractContextManager[object]:
    """Put a loss module's buffers back: building calls it, and it is not a step."""
    loss = _function_of(loss)
    return left_as_it_was(loss) if isinstance(loss, nn.Module) else nullcontext()


def _identity(graph: Graph, model: nn.Module, source: Source | None) -> bytes:
    """Return a digest that differs for models that differ in calls, shapes or tied weights."""
    digest = hashlib.sha256(source.kind.encode() if source else b"")
    for call in graph.calls:
        digest.update(f"{call.anchor} {call.call} {call.outputs} {call.inner}\n".encode())
    for value in graph.values:
        digest.update(f"{value.shape} {value.dtype} {value.requires_grad}\n".encode())
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
    return digest.hexdigest().encode()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, without gradients, and back afterwards."""
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, flag in training:
            module.training = flag


@contextmanager
def _threads(num_threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _held_by(home: Home, holders_of: dict[str, tuple[int, ...]]) -> set[str]:
    return {name for name, ranks in holders_of.items() if set(ranks) & set(home.own_ranks)}


def _edges(recorded: Recorded, placement: Placement) -> set[tuple[int, int]]:
    """Return every pair of ranks that may exchange messages, whatever is frozen or not later."""
    links, chain = recorded.links, StageLinks.chain(placement.num_stages)
    pairs = {*links.activations, *links.gradients, *chain.activations}
    if recorded.graph.chances:  # any stage may be left empty, and be passed over
        pairs |= set(itertools.combinations(range(placement.num_stages), 2))
    ranks = {(placement.rank_of[source], placement.rank_of[target]) for source, target in pairs}
    both = ranks | {(target, source) for source, target in ranks}
    return {(source, target) for source, target in both if source != target}
