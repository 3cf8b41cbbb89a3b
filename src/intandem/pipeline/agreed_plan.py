"""Where a model is cut, from what its parts cost; the same on every rank."""

from __future__ import annotations

import hashlib
import logging
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from intandem.errors import RunError
from intandem.pipeline.opening import is_gain, opening, worth_opening
from intandem.pipeline.stages import StagePlan, balanced_starts, named_starts
from intandem.profiler.counted import NOMINAL_FLOP_PER_S, counted_costs
from intandem.profiler.kept import use_of_segments
from intandem.profiler.likeness import kinds_of, pooled
from intandem.profiler.segments import measure_segments
from intandem.recorder.blocks import Open
from intandem.recorder.cut import cut
from intandem.recorder.python_state import attributes_kept
from intandem.recorder.trees import named_leaves
from intandem.runtime.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor, nn

    from intandem.pipeline.home import Home
    from intandem.pipeline.materialise import Source
    from intandem.pipeline.request import Request
    from intandem.pipeline.study import Subject
    from intandem.profiler.kept import Uses
    from intandem.profiler.segments import SegmentCost
    from intandem.recorder import Graph

_log = logging.getLogger(__name__)


def agree_on_plan(
    subject: Subject,
    home: Home,
    num_stages: int,
    source: Source | None,
    study_again: Callable[[Request], Subject],
) -> StagePlan:
    """Return rank 0's plan, on every rank, if all have built the same model.

    Args:
        subject: what is to be cut.
        home: of this process's ranks.
        num_stages: that it is to be cut into.
        source: fills parameters; None where they are filled.
        study_again: makes the subject of another request for the same model.

    Raises:
        RunError: if this process has built another model than rank 0's.
    """
    identity = _identity(subject.graph, subject.request.model, source)
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
    names = worth_opening(subject, plan)
    if names and not subject.request.options.open_blocks:
        _log.info(
            "the slowest stage takes %.1f ms, all of them %.1f on average; "
            "Options(open_blocks=True) may cut inside of %s",
            1e3 * max(plan.stage_s()), 1e3 * sum(plan.stage_s()) / num_stages, ", ".join(names),
        )  # fmt: skip
    elif names:
        request = opening(subject.request, names)
        plan = _finer_plan(request, subject, plan, home, study_again) or plan
    home.agree("plan", identity + b"\n" + plan.encode())
    return plan


def _finer_plan(
    request: Request,
    subject: Subject,
    plan: StagePlan,
    home: Home,
    study_again: Callable[[Request], Subject],
) -> StagePlan | None:
    """Return a plan that cuts inside of blocks, if that is possible and better than ``plan``."""
    opened = tuple(one.name for one in request.blocks if isinstance(one, Open))
    try:
        pieces = study_again(request)
        finer = _plan(pieces, len(plan.starts), home.threads_per_rank)
    except Exception as error:  # kept whole, the block can be run, whatever it does
        _log.info("cannot cut inside of %s: %s", ", ".join(opened), error)
        return None
    pace = _pace(_measured(subject, plan), _measured(pieces, finer))
    stage_s = [pace * seconds for seconds in finer.stage_s()]
    if not is_gain(plan.stage_s(), stage_s):
        return None
    _log.info(
        "cut inside of %s: the slowest stage takes %.1f instead of %.1f ms",
        ", ".join(opened), 1e3 * max(stage_s), 1e3 * max(plan.stage_s()),
    )  # fmt: skip
    return replace(finer, opened=opened)


def _measured(subject: Subject, plan: StagePlan) -> dict[tuple[str, int], float]:
    both = zip(subject.segments, plan.costs, strict=True)
    return {(part.name, part.call): cost.forward_s + cost.backward_s for part, cost in both}


def _pace(
    before_s: Mapping[tuple[str, int], float], after_s: Mapping[tuple[str, int], float]
) -> float:
    """Return how much faster the machine has become, by the segments that were measured twice."""
    twice = before_s.keys() & after_s.keys()
    now_s = sum(after_s[key] for key in twice)
    return sum(before_s[key] for key in twice) / now_s if now_s else 1.0


def _plan(subject: Subject, num_stages: int, num_threads: int) -> StagePlan:
    request, found = subject.request, subject.segments
    costs, uses = _costs(subject, num_threads)
    if request.first_modules is None:
        starts = balanced_starts(found, costs, num_stages)
    else:
        starts = named_starts(found, request.first_modules)
    if uses is None:
        return StagePlan(starts, costs)
    stages = cut(subject.graph, [found[index].start for index in starts])
    spans = map(range, starts, (*starts[1:], len(found)))
    return StagePlan(starts, costs, tuple(map(uses.kept_bytes, stages, spans)))


def _costs(subject: Subject, num_threads: int) -> tuple[tuple[SegmentCost, ...], Uses | None]:
    """Return what every segment costs: measured, or counted where there is no data to run on.

    And what it keeps, where that could be seen.
    """
    request, found = subject.request, subject.segments
    if subject.meter is not None:
        _log.info(
            "the model has no data yet, so costs are counted, not measured: %d operations in the "
            "forward of a micro-batch, at %g per second",
            subject.meter.total, NOMINAL_FLOP_PER_S,
        )  # fmt: skip
        return counted_costs(subject.graph, found, subject.meter), None

    named = dict(named_leaves(subject.example))
    tensors: list[Tensor] = [named[name] for name in subject.graph.inputs]
    weights = Weights(request.model, subject.graph)  # for now: it holds on to other ranks' stages
    began_s = time.perf_counter()
    with _threads(num_threads), torch.enable_grad(), attributes_kept(request.model):
        uses = use_of_segments(subject.graph, found, weights, tensors, subject.loss)
    with _threads(num_threads), torch.enable_grad(), attributes_kept(request.model):
        costs = measure_segments(subject.graph, found, weights, tensors, subject.loss)
    _log.info(
        "measured the costs of %d segments in %.3f s", len(found), time.perf_counter() - began_s
    )
    if uses is not None:
        both = zip(costs, uses.segments, strict=True)
        costs = tuple(
            replace(c, forward_flops=u.forward_flops, backward_flops=u.backward_flops)
            for c, u in both
        )
    return pooled(costs, kinds_of(subject.graph, found, request.model)), uses


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
def _threads(num_threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
