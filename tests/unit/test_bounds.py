"""Lower bounds: never above a proven optimum, and as tight as the papers' own."""

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from intandem.costs import CostModel
from intandem.ir import Action, ActionKind, Placement, Schedule
from intandem.planner.builtin import peaks
from intandem.planner.problem import Memory
from intandem.rules import check
from intandem.schedules import build_schedule
from intandem.simulator import Allowed, lower_bound_s, simulate

GOLDEN = Path(__file__).parent.parent / "golden"
CASES = json.loads((GOLDEN / "search_cases.json").read_text())["optimal"]
PLACEMENTS = {
    "single": Placement.loop,
    "v": Placement.vee,
    "loop2": lambda num_ranks: Placement.loop(num_ranks, 2),
}


def bound_of(case):
    """Bound of a case, with its memory as bytes."""
    placement = PLACEMENTS[case["placement"]](case["p"])
    count = placement.num_stages
    costs = replace(
        CostModel.uniform(count, case["TF"], case["TB"], case["TW"], case["Tc"]),
        activation_bytes=(case["mem_f"],) * count,
        pending_bytes=(-case["mem_w"],) * count,
    )
    objective = "global" if case["objective"] == "global" else "rank"
    allowed = Allowed(objective, None, case["mem_limit"], not case["fused_backward"])
    return lower_bound_s(costs, placement, case["m"], allowed)


def test_never_above_a_proven_optimum():
    """All optima that an exact solver has proven: any placement, cap, objective."""
    ratios = [bound_of(case) / case["best"] for case in CASES]

    assert max(ratios) <= 1
    assert sum(ratio == 1 for ratio in ratios) >= 95
    assert sum(ratios) / len(ratios) >= 0.948


def test_as_tight_as_the_closed_forms():
    """Where a paper's closed form is known for a case, ours is not below it."""
    known = [case for case in CASES if "closed_form_lower_bound" in case]

    assert known
    assert all(bound_of(case) >= case["closed_form_lower_bound"] for case in known)


def orders(placement, num_microbatches, kinds):
    """Every order of every rank: micro-batches ascending, F before I before W."""
    rows = []
    for rank in range(placement.num_ranks):
        stages = placement.stages_of(rank)
        rows.append(list(words({s: [0] * len(kinds) for s in stages}, num_microbatches, kinds)))
    return itertools.product(*rows)


def words(done, num_microbatches, kinds):
    """Every way to go on from ``done``, actions per stage and kind."""
    ended = True
    for stage, counts in done.items():
        for index, kind in enumerate(kinds):
            most = counts[index - 1] if index else num_microbatches
            if counts[index] < most:
                ended = False
                counts[index] += 1
                action = Action(stage, ActionKind(kind), counts[index] - 1)
                for rest in words(done, num_microbatches, kinds):
                    yield (action, *rest)
                counts[index] -= 1
    if ended:
        yield ()


BRUTE = [
    (Placement.loop(2), 2, "FIW"),
    (Placement.loop(2), 3, "FB"),
    (Placement((0, 1, 1, 0)), 1, "FIW"),
    (Placement((0, 1, 0, 1)), 1, "FIW"),
    (Placement((0, 1, 0)), 2, "FB"),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("placement", "num_microbatches", "kinds"), BRUTE, ids=str)
def test_never_above_the_best_of_all_orders(placement, num_microbatches, kinds, seed):
    """Unequal stages, latency, bytes, pending gradients: against every order there is."""
    draw = random.Random(seed)
    count = placement.num_stages
    seconds = [tuple(draw.choice((0.5, 1.0, 2.0, 3.0)) for _ in range(count)) for _ in "FIW"]
    kept = tuple(draw.choice((2, 3, 4)) for _ in range(count))
    costs = CostModel(
        *seconds,
        latency_s=draw.choice((0.0, 0.5)),
        bandwidth_bytes_per_s=2.0,
        boundary_bytes=tuple(draw.choice((0, 1)) for _ in range(count - 1)),
        activation_bytes=kept,
        pending_bytes=tuple(draw.choice((1, k)) for k in kept),
    )
    memory = Memory(kept, (0,) * count, costs.pending_bytes)
    best = {}
    for rows in orders(placement, num_microbatches, kinds):
        schedule = Schedule("any", placement, num_microbatches, rows)
        if check(schedule):
            continue
        timeline, need = simulate(schedule, costs), max(peaks(schedule, memory))
        for objective, value in (
            ("global", timeline.makespan_s),
            ("rank", timeline.rank_span_s),
        ):
            key = objective, need
            best[key] = min(value, best.get(key, value))

    for (objective, cap), value in best.items():
        for split in (None, kinds == "FIW"):
            allowed = Allowed(objective, None, cap, split)
            bound_s = lower_bound_s(costs, placement, num_microbatches, allowed)
            assert bound_s <= value * (1 + 1e-12)


def test_a_link_is_a_machine():
    """Four messages of 5 s each keep a link for 20 s, whatever the ranks do."""
    costs = CostModel(
        (1.0, 1.0), (1.0, 1.0), (1.0, 1.0), bandwidth_bytes_per_s=1.0, boundary_bytes=(5,)
    )

    bound_s = lower_bound_s(costs, Placement.loop(2), 4)

    assert bound_s == 1 + 4 * 5 + 1 + 1 + 5 + 1 + 1


def test_two_replicas_share_the_work():
    """A rank that holds a stage of either direction does each for half of the micro-batches."""
    costs = CostModel.uniform(2)

    bound_s = lower_bound_s(costs, Placement.bidirectional(2), 4)

    assert bound_s == 4 * 3


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", ["dualpipe", "dualpipe-v"])
def test_pairs_shorter_than_their_parts(name, seed):
    """An F and a B may take less together than the two, or than the B alone."""
    draw = random.Random(seed)
    schedule = build_schedule(name, num_ranks=2, num_microbatches=8)
    count = schedule.num_stages
    seconds = [tuple(draw.choice((0.5, 1.0, 2.0, 5.0)) for _ in range(count)) for _ in "FIW"]
    together = tuple(f + draw.choice((0.0, 0.5, 2.0)) for f in seconds[0])
    whole = tuple(draw.choice((i, i + w)) for i, w in zip(*seconds[1:], strict=True))
    costs = CostModel(*seconds, whole, overlapped_s=together)

    timeline = simulate(schedule, costs)

    for objective, value in (("global", timeline.makespan_s), ("rank", timeline.rank_span_s)):
        bound_s = lower_bound_s(costs, schedule.placement, 8, Allowed(objective))
        assert bound_s <= value * (1 + 1e-12)


def test_what_a_pair_takes_is_shared_out():
    """FB=2 with F=1 and I=3: a pair is two seconds of the backward, and its forward comes free."""
    costs = replace(CostModel.uniform(2, 1.0, 3.0, 0.0), overlapped_s=(2.0, 2.0))

    assert lower_bound_s(costs, Placement.bidirectional(2), 8) == 8 * 2
    costs = replace(costs, overlapped_s=(3.5, 3.5))
    assert lower_bound_s(costs, Placement.bidirectional(2), 8) == 8 * 3.5


def test_refuses_bytes_that_are_unknown():
    """A cap in bytes needs costs with bytes."""
    with pytest.raises(ValueError, match="max_bytes needs activation_bytes"):
        lower_bound_s(CostModel.uniform(1), Placement.loop(1), 1, Allowed(max_bytes=3))
