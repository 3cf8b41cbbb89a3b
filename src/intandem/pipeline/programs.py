"""The programs of a pipeline, one for each number of micro-batches and way of joining stages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intandem.errors import ScheduleError
from intandem.ir import Action, ActionKind, Placement, Schedule, StageLinks
from intandem.lowering import lower
from intandem.lowering.forward import forward_half
from intandem.lowering.transfers import add_transfers
from intandem.runtime.work import Mode

if TYPE_CHECKING:
    from collections.abc import Iterable

    from intandem.costs import CostModel
    from intandem.ir import Program
    from intandem.pipeline.request import Request


class Programs:
    """Lowers on demand, and remembers.

    Args:
        request: names the schedule.
        num_ranks: of the pipeline.
        costs: of its stages.
        reduces: whether gradients are held in parts (tied weights).
    """

    def __init__(
        self, request: Request, num_ranks: int, costs: CostModel, *, reduces: bool
    ) -> None:
        self._request = request
        self._costs = costs
        self._num_ranks = num_ranks
        self._reduces = reduces
        self._known: dict[tuple[int, StageLinks, Mode], Program] = {}

    def find(self, num_microbatches: int, links: StageLinks, mode: Mode) -> Program:
        """Return what the ranks execute for one pass."""
        key = (num_microbatches, links, mode)
        if key not in self._known:
            self._known[key] = self._make(num_microbatches, links, mode)
        return self._known[key]

    def _make(self, num_microbatches: int, links: StageLinks, mode: Mode) -> Program:
        schedule = self._request.build_schedule(self._num_ranks, num_microbatches, self._costs)
        if mode is Mode.TRAIN and schedule.is_forward_only:
            msg = (
                f"schedule {schedule.name!r} has no backward, so step() has nothing to train with; "
                "evaluate() and predict() run it, and any other schedule trains"
            )
            raise ScheduleError(msg)
        if mode is Mode.PREDICT and schedule.placement.replicas:
            return add_transfers(_by_one_replica(schedule), StageLinks(links.activations, ()))
        stages = range(schedule.num_stages) if self._request.recomputes else ()
        program = lower(schedule, links, recompute=frozenset(stages), reduce=self._reduces)
        return program if mode is Mode.TRAIN else forward_half(program)


def _by_one_replica(schedule: Schedule) -> Schedule:
    """Return forwards of all micro-batches by replica 0, so that one rank has every output.

    Stage by stage, each over all micro-batches, which cannot wait in a circle. Ranks of the other
    replicas do nothing, as no schedule for training may.
    """
    placement = Placement(schedule.placement.rank_of)
    rows = tuple(
        tuple(
            Action(stage, ActionKind.F, microbatch)
            for stage in placement.stages_of(rank)
            for microbatch in range(schedule.num_microbatches)
        )
        for rank in range(schedule.num_ranks)
    )
    return Schedule(schedule.name, placement, schedule.num_microbatches, rows)


def union_of(all_links: Iterable[StageLinks]) -> StageLinks:
    """Return links that serve micro-batches with different recordings."""
    found = list(all_links)
    return StageLinks(
        tuple(sorted({pair for links in found for pair in links.activations})),
        tuple(sorted({pair for links in found for pair in links.gradients})),
    )
