"""What the benchmark of emulated ranks asks for."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from emulated.plan import SCHEDULES, SHARES, SIDES, Setting, costs_of, default_plan, full_plan
from emulated.report import ratio, reached


def test_stages_of_a_rank_share_what_its_part_takes():
    setting = Setting("local", 4, 10, "unequal", ("interleaved",))

    once, twice = costs_of(setting, 4), costs_of(setting, 8)

    assert once.forward_s == pytest.approx((0.010, 0.013, 0.008, 0.011))
    assert twice.forward_s == pytest.approx(tuple(s / 2 for s in once.forward_s for _ in "VV"))
    assert once.forward_s == once.backward_input_s == once.backward_weight_s


def test_everything_holds_what_is_run_by_default():
    everything = full_plan(SIDES, (4, 8, 16), (2, 10, 20), tuple(SHARES), SCHEDULES)
    known = {setting[:4]: setting.schedules for setting in everything}

    for setting in default_plan():
        assert set(setting.schedules) <= set(known[setting[:4]])
    assert {s.side for s in everything if s.num_ranks == 16} == {"local"}


@pytest.mark.parametrize(
    ("side", "ranks", "ms", "bound"),
    [("local", 4, 2, 1.05), ("gloo", 8, 2, None), ("gloo", 8, 20, 1.02), ("torch", 4, 10, None)],
)
def test_bounds_are_for_our_sides(side, ranks, ms, bound):
    assert reached({"side": side, "num_ranks": ranks, "action_ms": ms}) == bound


def test_the_ratio_is_that_of_the_median_step():
    assert ratio({"steps_s": [9.0, 1.0, 2.0], "makespan_s": 2.0}) == 1.0
