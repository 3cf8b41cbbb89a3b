"""Cases that the search is held against: proven optima, and what public schedulers reach."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from intandem.costs import CostModel
from intandem.ir import Placement
from intandem.planner import search

CASES = json.loads((Path(__file__).parent.parent / "golden" / "search_cases.json").read_text())
PLACEMENTS = {
    "single": Placement.loop,
    "v": Placement.vee,
    "loop2": lambda num_ranks: Placement.loop(num_ranks, 2),
}


def placement_of(case):
    """Where its stages are."""
    return PLACEMENTS[case["placement"]](case["p"])


def costs_of(case, num_stages):
    """Its seconds, and its memory as bytes."""
    return replace(
        CostModel.uniform(num_stages, case["TF"], case["TB"], case["TW"], case["Tc"]),
        activation_bytes=(case["mem_f"],) * num_stages,
        pending_bytes=(-case["mem_w"],) * num_stages,
    )


def found_for(case, **asked):
    """Search for the schedule of ``case``."""
    placement = placement_of(case)
    given = {
        "num_ranks": case["p"],
        "num_microbatches": case["m"],
        "placement": placement,
        "memory_cap_bytes": case["mem_limit"],
        "objective": "global" if case.get("objective", "global") == "global" else "rank",
        "split_backward": not case.get("fused_backward", False),
        "solver": "none",
    }
    return search(costs_of(case, placement.num_stages), **{**given, **asked})


def public_cases():
    """What public schedulers reach: a placement, a cap, and values for both objectives."""
    cases = [{**case, "placement": "single"} for case in CASES["zb_heuristic"]]
    cases += [{**case, "placement": "v"} for case in CASES["v_schedules"]]
    for case in cases:
        if case["mem_limit"] is None:
            case["mem_limit"] = max(case["peak_mem"])
    return cases
