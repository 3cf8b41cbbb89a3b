"""Built-in schedules as starting points: which compete, and what is not hidden when one fails."""

import pytest

import intandem as it
from intandem.costs import CostModel
from intandem.errors import ScheduleError
from intandem.planner import builtin
from intandem.planner.builtin import Wanted, builtin_schedules


def names(num_stages, num_ranks, num_microbatches, cap=None):
    wanted = Wanted(
        CostModel.uniform(num_stages), num_ranks, num_microbatches, None if cap is None else (cap,)
    )
    return [schedule.name for schedule in builtin_schedules(wanted)]


def test_families_of_that_many_stages():
    """One stage per rank, two, or none that goes round; made for costs or not."""
    assert {"1f1b", "zb-1p", "zb-2p", "dualpipe"} <= set(names(2, 2, 4))
    assert not {"zb-v", "v-min", "dualpipe-v", "forward-only"} & set(names(2, 2, 4))
    assert {"zb-v", "v-half", "v-min", "dualpipe-v", "interleaved"} <= set(names(4, 2, 4))
    assert not {"1f1b", "zb-1p"} & set(names(4, 2, 4))
    assert names(3, 2, 4) == []


@pytest.mark.parametrize("cap", [3, 4, 6.5])
def test_what_is_the_same_in_a_cap_is_built_once(cap):
    """ZB-1p and ZB-2p differ in the room they have of their own, and in nothing else."""
    assert "zb-1p" in names(4, 4, 8, cap)
    assert "zb-2p" not in names(4, 4, 8, cap)
    costs = CostModel((1.0, 2.0, 1.5, 1.0), (1.0, 2.0, 1.0, 3.0), (1.0, 1.0, 2.0, 1.0))
    one, two = (
        it.build_schedule(name, num_ranks=4, num_microbatches=8, costs=costs, max_activations=cap)
        for name in ("zb-1p", "zb-2p")
    )
    assert one.actions == two.actions


@pytest.mark.parametrize("cap", [None, 1, 2, 5])
@pytest.mark.parametrize("num_microbatches", [1, 3])
@pytest.mark.parametrize("num_stages", [3, 6, 9])
def test_no_family_fails(num_stages, num_microbatches, cap):
    """Each refuses what it has no order for as a schedule's error, whatever is asked."""
    names(num_stages, 3, num_microbatches, cap)


@pytest.mark.parametrize("error", [KeyError, IndexError, ValueError])
def test_a_fault_of_a_family_is_not_hidden(monkeypatch, error):
    """Only a refusal leaves a family out."""

    def raising(kind):
        def build(*_):
            msg = "in a builder"
            raise kind(msg)

        return (builtin.Family("naive", build),)

    monkeypatch.setattr(builtin, "FAMILIES", raising(error))
    with pytest.raises(error, match="in a builder"):
        names(2, 2, 4)
    monkeypatch.setattr(builtin, "FAMILIES", raising(ScheduleError))
    assert names(2, 2, 4) == []


@pytest.mark.parametrize(("cap", "wins"), [(5, True), (4, False)])
def test_what_is_taken_as_it_is_keeps_within_the_cap(cap, wins):
    """DualPipe holds P + 1 activations: with room for P it is no answer, though it is shorter."""
    found = it.search(
        CostModel.uniform(4),
        num_ranks=4,
        num_microbatches=8,
        memory_cap=cap,
        weight_copies=2,
        effort=0.02,
        solver="none",
    )

    assert (found.method == "built-in dualpipe") == wins
    assert max(found.peak_activations) <= cap
