"""Every schedule is drawn, then proved over a grid."""

import importlib
import re

import pytest

from intandem.costs import CostModel
from intandem.errors import ScheduleError
from intandem.ir import format_schedule, parse_schedule
from intandem.lowering import lower
from intandem.rules import verify
from intandem.schedules import build_schedule, schedule_names
from intandem.simulator import peak_activations, simulate

GRID = [(p, m) for p in (1, 2, 3, 4, 7) for m in (1, 2, 3, 4, 5, 8, 13)]
MODULES = {"1f1b": "one_f_one_b"}


@pytest.mark.parametrize("name", schedule_names())
def test_is_as_drawn(name):
    """The picture in the module's docstring is what the function builds."""
    module = importlib.import_module(f"intandem.schedules.{MODULES.get(name, name)}")
    p, m = map(int, re.search(r"For P=(\d+), M=(\d+)::", module.__doc__).groups())
    picture = [line.strip() for line in module.__doc__.splitlines() if "rank" in line[:9]]

    assert str(build_schedule(name, num_ranks=p, num_microbatches=m)).splitlines() == picture


@pytest.mark.parametrize("name", schedule_names())
def test_every_size_verifies(name):
    """No size of the grid breaks a rule, as schedule or lowered; the text form keeps each."""
    for p, m in GRID:
        schedule = build_schedule(name, num_ranks=p, num_microbatches=m)

        verify(schedule)
        verify(lower(schedule, recompute={0}, reduce=True))
        assert parse_schedule(format_schedule(schedule)) == schedule
        assert schedule.name == name


@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
def test_bubble_ratio_is_the_textbook_one(name):
    """With equal stage times the idle share is (P-1)/(M+P-1)."""
    for p, m in GRID:
        schedule = build_schedule(name, num_ranks=p, num_microbatches=m)

        timeline = simulate(schedule, CostModel.uniform(p, 2.0, 3.0, 1.0))

        assert timeline.bubble_ratio == pytest.approx((p - 1) / (m + p - 1))
        assert timeline.makespan_s == pytest.approx(6.0 * (m + p - 1))


def test_naive_uses_one_rank_at_a_time():
    """M P (F + B): no two actions overlap."""
    for p, m in GRID:
        schedule = build_schedule("naive", num_ranks=p, num_microbatches=m)

        assert simulate(schedule, CostModel.uniform(p)).makespan_s == pytest.approx(3.0 * m * p)


@pytest.mark.parametrize(
    ("name", "promised"),
    [
        ("naive", lambda _p, _m, _rank: 1),
        ("gpipe", lambda _p, m, _rank: m),
        ("1f1b", lambda p, m, rank: min(p - rank, m)),
    ],
)
def test_holds_as_many_activations_as_promised(name, promised):
    """Per rank, over the whole grid."""
    for p, m in GRID:
        schedule = build_schedule(name, num_ranks=p, num_microbatches=m)

        assert peak_activations(schedule) == tuple(promised(p, m, rank) for rank in range(p))


@pytest.mark.parametrize("name", schedule_names())
@pytest.mark.parametrize(("p", "m"), [(0, 1), (1, 0), (-1, 4)])
def test_rejects_empty(name, p, m):
    """The message names both values."""
    with pytest.raises(ValueError, match=rf"num_ranks={p}, num_microbatches={m}"):
        build_schedule(name, num_ranks=p, num_microbatches=m)


def test_unknown_name():
    """The message lists what there is, and the nearest."""
    with pytest.raises(ScheduleError) as caught:
        build_schedule("1F1b-", num_ranks=1, num_microbatches=1)

    expected = "unknown schedule '1F1b-'; known: naive, gpipe, 1f1b; did you mean '1f1b'?"
    assert str(caught.value) == expected
