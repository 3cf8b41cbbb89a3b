"""Which rank answers for which parameter and buffer, and letting go of the others'."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from intandem.runtime.tied import TiedParameter
from intandem.runtime.weights import use_of, uses_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from intandem.ir import Placement
    from intandem.recorder import Graph
    from intandem.recorder.cut import StageGraph
    from intandem.runtime.weights import Use


def owners_of(
    graph: Graph, cuts: Sequence[StageGraph], placement: Placement
) -> dict[str, tuple[int, ...]]:
    """Return for each parameter the ranks that hold it; the first answers for it.

    A parameter that no call uses is rank 0's, so that it is saved with the others.
    """
    rank_of_use = _ranks_of_uses(graph, cuts, placement)
    owners: dict[str, tuple[int, ...]] = dict.fromkeys(graph.unused, (placement.rank_of[0],))
    for name, uses in uses_of(graph, placement.num_replicas).items():
        ranks = [rank_of_use[use] for use in uses]
        owners[name] = tuple(dict.fromkeys(ranks))
    return owners


def tied_parameters(
    graph: Graph, cuts: Sequence[StageGraph], placement: Placement, order: Sequence[str]
) -> tuple[TiedParameter, ...]:
    """Return parameters with several uses, by calls or replicas, in the model's order."""
    rank_of_use = _ranks_of_uses(graph, cuts, placement)
    uses = uses_of(graph, placement.num_replicas)
    return tuple(
        TiedParameter(name, tuple((use, rank_of_use[use]) for use in uses[name]))
        for name in order
        if len(uses.get(name, ())) > 1
    )


def uses_of_ranks(
    graph: Graph, cuts: Sequence[StageGraph], placement: Placement, ranks: Collection[int]
) -> frozenset[Use]:
    """Return the uses of parameters that ``ranks`` make."""
    rank_of_use = _ranks_of_uses(graph, cuts, placement)
    return frozenset(use for use, rank in rank_of_use.items() if rank in ranks)


def buffer_owners(graph: Graph, cuts: Sequence[StageGraph], placement: Placement) -> dict[str, int]:
    """Return the rank that updates each buffer; others are equal everywhere."""
    return {
        name: placement.rank_of[part.stage]
        for part in cuts
        for index in part.calls
        for name in graph.calls[index].updates
    }


def free_parameters(model: nn.Module, kept: Collection[str]) -> None:
    """Replace every parameter that is not ``kept`` with one on ``meta``, tied ones alike."""
    held = {id(model.get_parameter(name)) for name in kept}
    freed: dict[int, nn.Parameter] = {}
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        path, _, attribute = name.rpartition(".")
        if id(parameter) in freed:
            setattr(model.get_submodule(path), attribute, freed[id(parameter)])
        elif id(parameter) not in held:
            empty = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
            freed[id(parameter)] = empty
            setattr(model.get_submodule(path), attribute, empty)


def _ranks_of_uses(
    graph: Graph, cuts: Sequence[StageGraph], placement: Placement
) -> dict[Use, int]:
    return {
        use_of(call, replica): rank_of[part.stage]
        for replica, rank_of in enumerate(placement.rows)
        for part in cuts
        for call in (graph.calls[index] for index in part.calls)
        if call.parameters
    }
