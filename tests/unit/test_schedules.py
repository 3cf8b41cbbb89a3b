"""Every schedule is drawn, then proved over a grid."""

import importlib
import re
from itertools import product

import pytest

from intandem.costs import CostModel
from intandem.errors import ScheduleError
from intandem.ir import format_schedule, parse_schedule
from intandem.lowering import lower
from intandem.rules import verify
from intandem.schedules import build_schedule, schedule_names
from intandem.schedules.registry import FAMILIES
from intandem.simulator import peak_activations, simulate

GRID = [(p, m) for p in (1, 2, 3, 4, 7) for m in (1, 2, 3, 4, 5, 8, 13)]
MODULES = {"1f1b": "one_f_one_b", "1f1b-eager": "one_f_one_b_eager"}
SEVERAL_STAGES = [family.name for family in FAMILIES if "stages_per_rank" in family.takes]

HAS_NO_ORDER = {
    "chimera": lambda p, _m: p % 2,
    "dualpipe": lambda p, _m: p % 2,
}
"""Counts for which a schedule is not defined; every other has an order for any."""


def is_defined(name, p, m):
    return not HAS_NO_ORDER.get(name, lambda _p, _m: False)(p, m)


def prove(name, p, m, **more):
    """Build a schedule and check its rules, lowered too, and its text form."""
    schedule = build_schedule(name, num_ranks=p, num_microbatches=m, **more)
    recompute = set() if schedule.is_forward_only else {0}

    verify(lower(schedule, recompute=recompute, reduce=True))
    assert parse_schedule(format_schedule(schedule)) == schedule


def module_of(name):
    path = MODULES.get(name, name).replace("-", "_")
    return importlib.import_module(f"intandem.schedules.{path}")


@pytest.mark.parametrize("name", schedule_names())
def test_is_as_drawn(name):
    """The picture in the module's docstring is what the function builds."""
    module = module_of(name)
    p, m, v = re.search(r"For P=(\d+), M=(\d+)(?:, V=(\d+))?::", module.__doc__).groups()
    picture = [line.strip() for line in module.__doc__.splitlines() if line.startswith("    rank ")]
    more = {"stages_per_rank": int(v)} if v else {}

    drawn = build_schedule(name, num_ranks=int(p), num_microbatches=int(m), **more)

    assert str(drawn).splitlines() == picture


@pytest.mark.parametrize("name", schedule_names())
def test_names_its_source(name):
    """The module's docstring links to where the schedule was published."""
    module = module_of(name)

    assert "https://" in module.__doc__ or name in {"naive", "forward-only"}


@pytest.mark.parametrize("name", schedule_names())
def test_every_size_verifies(name):
    """No size of the grid breaks a rule, whichever is larger, P or M, and whatever divides what."""
    for p, m in product(range(1, 9), range(1, 18)):
        if is_defined(name, p, m):
            schedule = build_schedule(name, num_ranks=p, num_microbatches=m)

            verify(schedule)
            assert schedule.name == name
            assert schedule.num_ranks == p


@pytest.mark.parametrize("name", schedule_names())
def test_lowers_and_keeps_its_text_form(name):
    """Nor does any as program, with recomputation and reduction."""
    for p, m in GRID:
        if is_defined(name, p, m):
            prove(name, p, m)


@pytest.mark.parametrize("name", SEVERAL_STAGES)
def test_any_number_of_stages_per_rank_verifies(name):
    """One to four, except where they come in pairs."""
    for v, p, m in product((1, 2, 3, 4), (1, 2, 3, 4, 5), (1, 2, 3, 5, 8, 11)):
        if name != "hanayo" or v % 2 == 0:
            prove(name, p, m, stages_per_rank=v)


@pytest.mark.parametrize("name", HAS_NO_ORDER)
def test_sizes_without_an_order_are_refused(name):
    """The message names the value, what is needed and another schedule."""
    for p, m in product(range(1, 9), range(1, 18)):
        if not is_defined(name, p, m):
            with pytest.raises(ScheduleError, match=rf"{name} needs .* got ({p}|{m}); use .* 1f1b"):
                build_schedule(name, num_ranks=p, num_microbatches=m)


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "1f1b-eager"])
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
        ("1f1b-eager", lambda p, m, rank: min(2 * (p - rank) - 1, m)),
    ],
)
def test_holds_as_many_activations_as_promised(name, promised):
    """Per rank, over the whole grid."""
    for p, m in GRID:
        schedule = build_schedule(name, num_ranks=p, num_microbatches=m)

        assert peak_activations(schedule) == tuple(promised(p, m, rank) for rank in range(p))


class TestEagerWarmUp:
    """What the deeper warm-up is for: transfers of 0.5 s between stages of 3 s."""

    @staticmethod
    def seconds(name, num_microbatches, transfer_s=0.5):
        schedule = build_schedule(name, num_ranks=4, num_microbatches=num_microbatches)
        costs = CostModel.uniform(4, transfer_s=transfer_s)
        return simulate(schedule, costs).makespan_s

    def test_transfers_are_paid_once(self):
        """M T + (P - 1)(T + 2c), so that each micro-batch more costs the work alone."""
        for m in (8, 9, 16, 64):
            assert self.seconds("1f1b-eager", m) == 3 * m + 3 * (3 + 2 * 0.5)

    def test_1f1b_pays_as_it_goes(self):
        """Every P micro-batches more cost 2c(P - 1) more than the work."""
        for m in (8, 16, 64):
            assert self.seconds("1f1b", m + 4) - self.seconds("1f1b", m) == 4 * 3 + 2 * 0.5 * 3

    def test_hides_no_more_than_a_stage_takes(self):
        """Up to 2c = T a micro-batch more costs the work alone; beyond that it costs more."""

        def added_s(transfer_s):
            whole, part = (self.seconds("1f1b-eager", m, transfer_s) for m in (100, 60))
            return whole - part

        assert added_s(1.5) == 40 * 3
        assert added_s(1.75) > 40 * 3


@pytest.mark.parametrize("name", schedule_names())
@pytest.mark.parametrize(("p", "m"), [(0, 1), (1, 0), (-1, 4)])
def test_rejects_empty(name, p, m):
    """The message names both values."""
    with pytest.raises(ValueError, match=rf"num_ranks={p}, num_microbatches={m}"):
        build_schedule(name, num_ranks=p, num_microbatches=m)


@pytest.mark.parametrize("name", SEVERAL_STAGES)
def test_rejects_ranks_without_stages(name):
    """The message names the value."""
    with pytest.raises(ValueError, match="need at least one stage per rank, got stages_per_rank=0"):
        build_schedule(name, num_ranks=2, num_microbatches=2, stages_per_rank=0)


def test_stages_per_rank_is_refused_where_it_is_not_open():
    """The message lists the schedules that take it."""
    with pytest.raises(ValueError, match=r"'1f1b' takes no stages_per_rank .* do: interleaved, "):
        build_schedule("1f1b", num_ranks=2, num_microbatches=2, stages_per_rank=2)


def test_unknown_name():
    """The message lists what there is, and the nearest."""
    with pytest.raises(ScheduleError) as caught:
        build_schedule("1F1b-", num_ranks=1, num_microbatches=1)

    known = ", ".join(schedule_names())
    assert str(caught.value) == f"unknown schedule '1F1b-'; known: {known}; did you mean '1f1b'?"
