"""`torch.distributed.pipelining` on emulated ranks, as rows like ours."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.workers import Workers, rank_environments
from emulated.plan import BOUNDARY_BYTES, THEIRS, costs_of, parts_of

from intandem.ir import parse_compute_csv
from intandem.machine import Link, Machine
from intandem.rehearsal.links import rest_s
from intandem.rehearsal.request import shortest_action_s
from intandem.schedules import build_schedule
from intandem.simulator import simulate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from emulated.plan import Setting

    from intandem.ir import Schedule

_SINGLE = ("gpipe", "1f1b")
"""torch has these in code, one stage a rank; their order is that of ours."""


class Theirs:
    """Processes of so many ranks, kept for all settings that have as many."""

    def __init__(self, num_ranks: int) -> None:
        file = Path(__file__).resolve().parent / "sleeping.py"
        self.num_ranks = num_ranks
        self.workers = Workers([sys.executable, str(file)], rank_environments(num_ranks))

    def rows(self, setting: Setting, steps: int) -> Iterator[dict[str, Any]]:
        """Run a setting; yield what was found of each schedule."""
        shortest_s = shortest_action_s([part.costs for part in parts_of(setting)])
        links_s = self._links_s(shortest_s)
        machine = self._machine(links_s)
        for name in setting.schedules:
            sketch = build_schedule(
                name, num_ranks=setting.num_ranks, num_microbatches=setting.num_microbatches
            )
            costs = costs_of(setting, sketch.num_stages)
            case = [THEIRS[name], setting.num_microbatches, costs.forward_s, BOUNDARY_BYTES, steps]
            order = sketch if name in _SINGLE else self._order(case)
            planned = simulate(order, costs, machine)
            per_rank = self.workers.tell(f"run {json.dumps(case)}")
            yield {
                "schedule": name,
                "makespan_s": planned.makespan_s,
                "steps_s": [
                    max(last for _, last, _ in ranks) - min(first for first, _, _ in ranks)
                    for ranks in zip(*per_rank, strict=True)
                ],
                "overslept": sum(b for rank in per_rank for *_, b in rank) / steps / planned.busy_s
                - 1,
                "transfer_s": max(links_s),
            }

    def _links_s(self, action_s: float) -> list[float]:
        return self.workers.tell(f"links {BOUNDARY_BYTES} {rest_s(action_s)}")

    def _machine(self, links_s: list[float]) -> Machine:
        links = {}
        for low, seconds in enumerate(links_s):
            high = (low + 1) % self.num_ranks
            links[low, high] = links[high, low] = Link(seconds)
        return Machine(self.num_ranks, links=links)

    def _order(self, case: list[Any]) -> Schedule:
        return parse_compute_csv(self.workers.tell(f"order {json.dumps(case)}")[0], name=case[0])

    def close(self) -> None:
        """End all processes."""
        self.workers.close()
