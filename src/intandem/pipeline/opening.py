"""Looking into blocks, where cuts between whole ones leave a stage slower than it need be.

A cut inside a block changes nothing that is computed: the block's own ``forward`` is recorded like
the model's, and what it calls is run by the stages. But draws would be keyed by other names,
recomputation in it would be lost, and its Python would run once for each recording. So it is done
where the user allows it, and for what neither draws nor recomputes; a later recording that does is
refused.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.modules import module as global_hooks

from intandem.recorder.blocks import Open, has_hooks, named_whole
from intandem.recorder.graph import CallKind, draws
from intandem.recorder.modes import compiles
from intandem.recorder.modules import named_modules
from intandem.recorder.stage_chain import StageChain

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from intandem.pipeline.request import Request
    from intandem.pipeline.stages import StagePlan
    from intandem.pipeline.study import Subject
    from intandem.recorder import Graph

_GLOBAL_HOOKS = (
    "_global_forward_hooks", "_global_forward_pre_hooks",
    "_global_backward_hooks", "_global_backward_pre_hooks",
)  # fmt: skip
_Dropout = nn.modules.dropout._DropoutNd

LEAST_GAIN = 0.02
"""Of the slowest stage's time, what must be won."""

LEAST_GAIN_S = 1e-3
"""For each micro-batch, what must be won."""


def opening(request: Request, names: Iterable[str]) -> Request:
    """Return the same request, with some blocks looked into."""
    return replace(request, blocks=(*request.blocks, *map(Open, names)))


def is_gain(before_s: Sequence[float], after_s: Sequence[float]) -> bool:
    """Tell whether the slowest of some stages is faster than the slowest before by enough."""
    slowest_s = max(before_s)
    return slowest_s - max(after_s) >= max(LEAST_GAIN_S, LEAST_GAIN * slowest_s)


def worth_opening(subject: Subject, plan: StagePlan) -> tuple[str, ...]:
    """Name the blocks beside cuts that may be cut themselves, where that could win enough."""
    request, graph, stage_s = subject.request, subject.graph, plan.stage_s()
    evenly_s = [sum(stage_s) / len(stage_s)] * len(stage_s)
    is_ours_to_cut = (
        request.first_modules is None
        and not isinstance(request.model, StageChain)
        and subject.meter is None
        and not any(getattr(global_hooks, name) for name in _GLOBAL_HOOKS)
    )
    if not is_ours_to_cut or not is_gain(stage_s, evenly_s) or _may_draw(request.model, graph):
        return ()
    names = []
    for stage, start in enumerate(plan.starts[1:]):
        heavier = start - 1 if stage_s[stage] > stage_s[stage + 1] else start
        names.append(subject.segments[heavier].name)
    modules = dict(named_modules(request.model))
    kept_whole = named_whole(request.model, request.blocks)
    num_calls = Counter(call.name for call in graph.calls if call.kind is CallKind.BLOCK)
    return tuple(
        name
        for name in dict.fromkeys(names)
        if num_calls[name] == 1 and modules[name] not in kept_whole and _has_parts(modules[name])
    )


def _may_draw(model: nn.Module, graph: Graph) -> bool:
    """Tell whether it draws random numbers or will, or has code of its own in backward."""
    drops = any(isinstance(one, _Dropout) and one.p > 0 for one in model.modules())
    return drops or graph.chances or draws(graph) or graph.own_backward


def _has_parts(module: nn.Module) -> bool:
    inside = list(module.modules())
    return len(inside) > 1 and not any(has_hooks(one) or compiles(one) for one in inside)
