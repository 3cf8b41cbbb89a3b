"""The programs of a pipeline, one for each number of micro-batches and way of joining stages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intandem.ir import StageLinks
from intandem.lowering import lower
from intandem.lowering.forward import forward_half

if TYPE_CHECKING:
    from collections.abc import Iterable

    from intandem.ir import Program
    from intandem.pipeline.request import Request


class Programs:
    """Lowers on demand, and remembers.

    Args:
        request: names the schedule.
        num_ranks: of the pipeline.
        reduces: whether gradients are held in parts (tied weights).
    """

    def __init__(self, request: Request, num_ranks: int, *, reduces: bool) -> None:
        self._request = request
        self._num_ranks = num_ranks
        self._reduces = reduces
        self._known: dict[tuple[int, StageLinks, bool], Program] = {}

    def find(self, num_microbatches: int, links: StageLinks, *, training: bool) -> Program:
        """Return what the ranks execute for one pass."""
        key = (num_microbatches, links, training)
        if key not in self._known:
            self._known[key] = self._make(num_microbatches, links, training=training)
        return self._known[key]

    def _make(self, num_microbatches: int, links: StageLinks, *, training: bool) -> Program:
        schedule = self._request.build_schedule(self._num_ranks, num_microbatches)
        stages = range(schedule.num_stages) if self._request.recomputes else ()
        program = lower(schedule, links, recompute=frozenset(stages), reduce=self._reduces)
        return program if training else forward_half(program)


def union_of(all_links: Iterable[StageLinks]) -> StageLinks:
    """Return links that serve micro-batches with different recordings."""
    found = list(all_links)
    return StageLinks(
        tuple(sorted({pair for links in found for pair in links.activations})),
        tuple(sorted({pair for links in found for pair in links.gradients})),
    )
