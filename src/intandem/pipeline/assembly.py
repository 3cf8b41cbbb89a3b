"""Puts a pipeline together: record, measure, cut, free what is others', connect."""

from __future__ import annotations

import itertools
import logging
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from intandem.ir import StageLinks
from intandem.pipeline.agreed_plan import agree_on_plan
from intandem.pipeline.home import Home, place
from intandem.pipeline.materialise import materialise_parameters
from intandem.pipeline.opening import opening
from intandem.pipeline.ownership import (
    buffer_owners,
    free_parameters,
    owners_of,
    tied_parameters,
    uses_of_ranks,
)
from intandem.pipeline.programs import Programs
from intandem.pipeline.study import Study, Subject, study
from intandem.recorder.capture import record
from intandem.recorder.cut import Cuts, Segment, cut
from intandem.runtime.recordings import Recorded, Recordings
from intandem.runtime.stage import Draw
from intandem.runtime.tied import TiedGradients
from intandem.runtime.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from intandem.ir import Placement
    from intandem.pipeline.materialise import Source
    from intandem.pipeline.request import Request
    from intandem.pipeline.stages import (
        StagePlan,
    )
    from intandem.recorder import Arguments
    from intandem.runtime.ranks import Ranks
    from intandem.runtime.whole_batch import Joining

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
    studied, plan = _study_and_plan(request, example, bind, placement, home, source)
    subject = studied.subject
    began_s = time.perf_counter()
    graph, found = subject.graph, subject.segments
    cuts = cut(graph, [found[index].start for index in plan.starts])
    holders_of = owners_of(graph, cuts, placement)
    if source is not None:
        materialise_parameters(model, source, _held_by(home, holders_of), home.device)
    own_uses = None
    if home.membership is not None:
        own_uses = uses_of_ranks(graph, cuts, placement, home.own_ranks)
    weights = Weights(model, graph, placement.num_replicas, own_uses)
    order = [name for name, _ in model.named_parameters()]
    tied = TiedGradients(weights, tied_parameters(graph, cuts, placement, order))
    recordings = Recordings(
        model,
        bind,
        weights,
        Cuts(tuple((segment.name, segment.call) for segment in found), tuple(plan.starts)),
        _own_stages(home, placement),
        subject.request.blocks,
    )
    recordings.expect_updates(graph)
    with torch.enable_grad():
        draw = Draw(request.options.seed, 0, 0)
        recorded = recordings.find(example, draw, None if subject.meter else subject.usual)
    _record_all(model, recordings, examples, draw, is_needed=home.membership is not None)
    if home.membership is not None:
        free_parameters(model, _held_by(home, holders_of))
        place(model, home.device)
    _say_cut(plan, found, time.perf_counter() - began_s)
    edges = _edges(recorded, placement) | tied.edges()
    return Assembly(
        home=home,
        ranks=home.start(weights, tied, edges, request.options),
        recordings=recordings,
        programs=Programs(request, num_ranks, plan.cost_model(), reduces=tied.any),
        weights=weights,
        placement=placement,
        plan=plan,
        segments=found,
        example=recorded,
        holders_of=holders_of,
        updater_of=buffer_owners(graph, cuts, placement),
        loss_is_sum=studied.loss.count is not None,
        joining=subject.joining,
    )


def _study_and_plan(
    request: Request,
    example: Any,
    bind: Callable[[Any], Arguments],
    placement: Placement,
    home: Home,
    source: Source | None,
) -> tuple[Study, StagePlan]:
    """Study the model and agree on where it is cut; with blocks opened, if the plan opens any.

    A block is opened only if the model can be recorded like that in evaluation as well.
    """
    studied = study(request, example, bind, placement)

    def study_again(asked: Request) -> Subject:
        with evaluating(request.model):
            record(request.model, example, bind, blocks=asked.blocks)
        return study(asked, example, bind, placement).subject

    plan = agree_on_plan(studied.subject, home, placement.num_stages, source, study_again)
    if plan.opened:
        studied = study(opening(request, plan.opened), example, bind, placement)
    return studied, plan


def _say_cut(plan: StagePlan, found: Sequence[Segment], seconds: float) -> None:
    waiting = [plan.num_waiting(stage) for stage in range(len(plan.starts))]
    _log.info(
        "cut the model into %d stages in %.3f s, the first segments of which are %s; elements of "
        "weights whose gradients can wait for W: %s",
        len(waiting), seconds, ", ".join(found[start].name for start in plan.starts),
        ", ".join("not known" if count is None else str(count) for count in waiting),
    )  # fmt: skip


def _record_all(
    model: nn.Module,
    recordings: Recordings,
    examples: Sequence[Any],
    draw: Draw,
    *,
    is_needed: bool,
) -> None:
    """Record what is to be expected: evaluation and uneven parts, so that no step has to.

    With ``is_needed``, it cannot be done later, as parameters go. Else what cannot be recorded is
    left to the step that wants it: a model may be one that is only trained.
    """
    for part in examples:
        for mode in (torch.enable_grad(), evaluating(model)):
            try:
                with mode:
                    recordings.expect(part, draw)
            except Exception:  # also of the user's own forward
                if is_needed:
                    raise


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


def _held_by(home: Home, holders_of: dict[str, tuple[int, ...]]) -> set[str]:
    return {name for name, ranks in holders_of.items() if set(ranks) & set(home.own_ranks)}


def _own_stages(home: Home, placement: Placement) -> list[tuple[int, int]]:
    return [
        (stage, replica)
        for replica, rank_of in enumerate(placement.rows)
        for stage, rank in enumerate(rank_of)
        if rank in home.own_ranks
    ]


def _edges(recorded: Recorded, placement: Placement) -> set[tuple[int, int]]:
    """Return every pair of ranks that may exchange messages, whatever is frozen or not later."""
    links, chain = recorded.links, StageLinks.chain(placement.num_stages)
    pairs = {*links.activations, *links.gradients, *chain.activations}
    if recorded.graph.chances:  # any stage may be left empty, and be passed over
        pairs |= set(itertools.combinations(range(placement.num_stages), 2))
    ranks = {(row[source], row[target]) for row in placement.rows for source, target in pairs}
    both = ranks | {(target, source) for source, target in ranks}
    return {(source, target) for source, target in both if source != target}
