"""Each rule has a smallest schedule that breaks it; messages are part of the API."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from order_samples import any_schedules, sched, split_backwards, valid_schedules

from intandem.errors import ScheduleVerifyError
from intandem.ir import Placement
from intandem.rules import check_memory, check_schedule, verify
from intandem.schedules import build_schedule

ONE_OF_EACH = "expected 1xF and either 1xB or 1xI with 1xW"

BROKEN = {
    "wrong rank": (
        sched("0F0 1F0 0B0", "1B0"),
        ["S001 rank 0 slot 1: 1F0 belongs on rank 1"],
    ),
    "forward twice": (
        sched("0F0 0F0 0B0"),
        [f"S002 rank 0: stage 0 micro-batch 0 has 2xF, 1xB; {ONE_OF_EACH}"],
    ),
    "weight backward lost": (
        sched("0F0 0I0"),
        [f"S002 rank 0: stage 0 micro-batch 0 has 1xF, 1xI; {ONE_OF_EACH}"],
    ),
    "backward whole and split": (
        sched("0F0 0B0 0I0 0W0"),
        [f"S002 rank 0: stage 0 micro-batch 0 has 1xF, 1xB, 1xI, 1xW; {ONE_OF_EACH}"],
    ),
    "micro-batch never seen": (
        sched("0F0 0B0", microbatches=2),
        [f"S002 rank 0: stage 0 micro-batch 1 has nothing; {ONE_OF_EACH}"],
    ),
    "many micro-batches never seen": (
        sched("0F2 0B2", microbatches=10**12),
        [
            f"S002 rank 0: stage 0 micro-batches 0 to 1 have nothing; {ONE_OF_EACH}",
            f"S002 rank 0: stage 0 micro-batches 3 to 999999999999 have nothing; {ONE_OF_EACH}",
        ],
    ),
    "backward before forward": (
        sched("0B0 0F0", "1F0 1B0"),
        [
            "S003 rank 0 slot 0: 0B0 waits forever for 0F0 and 1B0 or 1I0",
            "S003 rank 1 slot 0: 1F0 waits forever for 0F0",
        ],
    ),
    "backward before its own forward only": (
        sched("0F0 0F1 0B0 0B1", "1F0 1B0 1B1 1F1", microbatches=2),
        [
            "S003 rank 0 slot 3: 0B1 waits forever for 1B1 or 1I1",
            "S003 rank 1 slot 2: 1B1 waits forever for 1F1",
        ],
    ),
    "weights before inputs": (
        sched("0F0 0W0 0I0"),
        ["S003 rank 0 slot 1: 0W0 waits forever for 0I0"],
    ),
    "crossed orders deadlock": (
        sched("0F0 0B0 0F1 0B1", "1F1 1B1 1F0 1B0", microbatches=2),
        [
            "S003 rank 0 slot 1: 0B0 waits forever for 1B0 or 1I0",
            "S003 rank 1 slot 0: 1F1 waits forever for 0F1",
        ],
    ),
    "no micro-batch": (
        sched("", microbatches=0),
        ["S004 rank 0: 0 micro-batches per step; expected at least 1"],
    ),
    "no stage": (
        sched(placement=Placement(())),
        ["S004 rank 0: the placement has no stages; expected at least 1"],
    ),
    "row missing": (
        sched("0F0 0B0", placement=Placement((0, 1))),
        [
            f"S002 rank 1: stage 1 micro-batch 0 has nothing; {ONE_OF_EACH}",
            "S004 rank 1: the placement puts stage 1 here, but there is no such row",
        ],
    ),
    "row too many": (
        sched("0F0 0B0", "", placement=Placement((0,))),
        ["S004 rank 1: has a row but owns no stage"],
    ),
    "micro-batch out of range": (
        sched("0F0 0B0 0F1"),
        ["S005 rank 0 slot 2: 0F1 has no micro-batch: micro-batches end at 0"],
    ),
    "stage out of range": (
        sched("0F0 0B0 1F0"),
        ["S005 rank 0 slot 2: 1F0 has no stage: stages end at 0"],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_says_what_is_wrong(name):
    """Every finding is reported at once, with rank, slot and values."""
    schedule, expected = BROKEN[name]

    assert sorted(str(d) for d in check_schedule(schedule)) == sorted(expected)


def test_error_lists_all_findings_in_rank_order():
    """The exception shows what the check returns."""
    bad = sched("0F0", "1F0 1B0 1B0", placement=Placement((0, 1)))

    with pytest.raises(ScheduleVerifyError, match=r"2 problem\(s\):\n  S002 rank 0: stage") as e:
        verify(bad)

    assert [d.rank for d in e.value.diagnostics] == [0, 1]


def test_last_rank_of_another_stack_is_caught():
    """A published drawing of 1F1B starts its last rank at micro-batch 1."""
    bad = sched(
        "0F0 0F1 0F2 0B0 0F3 0B1 0B2 0B3",
        "1F0 1F1 1B0 1F2 1B1 1F3 1B2 1B3",
        "2F1 2B0 2F2 2B1 2F3 2B2 2F4 2B3",
        microbatches=4,
    )

    assert [str(d) for d in check_schedule(bad)] == [
        "S005 rank 2 slot 6: 2F4 has no micro-batch: micro-batches end at 3",
        f"S002 rank 2: stage 2 micro-batch 0 has 1xB; {ONE_OF_EACH}",
    ]


@given(any_schedules)
@settings(max_examples=300, deadline=None)
def test_takes_any_garbage(schedule):
    """Findings, never an exception; and an empty answer only for a schedule with actions."""
    found = check_schedule(schedule)

    assert found or any(schedule.actions)
    check_memory(schedule, 1)


@given(valid_schedules)
@settings(max_examples=100, deadline=None)
def test_accepts_what_runs(schedule):
    """Any order in which the actions can be done is valid."""
    assert check_schedule(schedule) == ()


def test_split_backward_is_valid():
    """I and W in place of B."""
    verify(split_backwards(build_schedule("1f1b", num_ranks=4, num_microbatches=6)))


class TestMemory:
    def test_over_the_cap(self):
        """The first slot over the cap, and the peak; one finding per rank."""
        schedule = build_schedule("1f1b", num_ranks=3, num_microbatches=4)

        assert [str(d) for d in check_memory(schedule, 1)] == [
            "M001 rank 0 slot 1: 0F1 makes 2 stage activations held, 3 at the peak; the cap is 1",
            "M001 rank 1 slot 1: 1F1 makes 2 stage activations held, 2 at the peak; the cap is 1",
        ]
        assert check_memory(schedule, 3) == ()

    def test_a_weight_backward_frees(self):
        """I alone frees nothing."""
        freed_late = sched("0F0 0I0 0F1 0W0 0I1 0W1", microbatches=2)
        freed = sched("0F0 0I0 0W0 0F1 0I1 0W1", microbatches=2)

        assert len(check_memory(freed_late, 1)) == 1
        assert check_memory(freed, 1) == ()

    def test_verify_takes_a_cap(self):
        """Memory is one more rule."""
        schedule = build_schedule("gpipe", num_ranks=2, num_microbatches=4)

        verify(schedule, max_activations=4)
        with pytest.raises(ScheduleVerifyError, match="the cap is 3"):
            verify(schedule, max_activations=3)

    def test_a_cap_of_nothing(self):
        """No schedule can hold less than one."""
        with pytest.raises(ValueError, match="the cap is 0 stage activations"):
            check_memory(sched("0F0 0B0"), 0)


def findings(*rows, overlaps=(), placement=None, microbatches=2):
    """What is found in an order with marks of overlap, as text."""
    order = sched(*rows, microbatches=microbatches, placement=placement)
    return [str(d) for d in check_schedule(replace(order, overlaps=frozenset(overlaps)))]


@pytest.mark.parametrize(
    ("rank", "slot", "found"),
    [
        (0, 1, None),
        (1, 2, "1F1 overlaps with 1B1, which needs it"),
        (0, 3, "overlaps with nothing: the row ends here"),
        (0, 0, "0F0 overlaps with 0F1; expected an F with a B or I"),
        (1, 1, "1B0 overlaps with 1F1; expected an F with a B or I"),
        (7, 0, "overlaps with nothing: the row ends here"),
        (0, -1, "overlaps with nothing: there is no such slot"),
        (0, -3, "overlaps with nothing: there is no such slot"),
    ],
)
def test_overlaps(rank, slot, found):
    """S006: an F and, directly after it, a B or I of something else."""
    got = findings("0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1", overlaps=[(rank, slot)])

    assert got == ([] if found is None else [f"S006 rank {rank} slot {slot}: {found}"])


def test_two_that_overlap_wait_as_one():
    """S003: the forward cannot start before the backward that overlaps with it."""
    rows = "0F0 0F1 0B0 0B1", "1F0 1F1 1B0 1B1"

    assert findings(*rows) == []
    assert findings(*rows, overlaps=[(0, 1)]) == [
        "S003 rank 0 slot 1: 0F1& 0B0 waits forever for 1B0 or 1I0",
        "S003 rank 1 slot 1: 1F1 waits forever for 0F1",
    ]


def test_replicas_share_micro_batches_out_in_order():
    """S001: each micro-batch has its own rank for a stage; S004: which holds the stage once."""
    two = Placement.bidirectional(2)

    assert findings("0F0 1F1 1B1 0B0", "0F1 1F0 1B0 0B1", placement=two) == []
    assert findings("0F1 1F0 1B0 0B1", "0F0 1F1 1B1 0B0", placement=two)[:2] == [
        "S001 rank 0 slot 0: 0F1 belongs on rank 1",
        "S001 rank 0 slot 1: 1F0 belongs on rank 1",
    ]
    assert findings("0F0 0F1 0B0 0B1", placement=Placement((0,), ((0,),)), microbatches=2) == [
        "S004 rank 0: holds stage 0 for 2 replicas; expected one"
    ]
    ragged = Placement((0, 1), ((1,),))
    assert findings("0F0 0B0", "1F0 1B0", placement=ragged, microbatches=1) == [
        "S004 rank 0: a replica has 1 stages and replica 0 2; expected as many"
    ]


def test_forwards_alone():
    """A schedule without backwards has every forward once; one backward asks for all."""
    assert findings("0F0 0F1", "1F0 1F1") == []
    assert findings("0F0 0F1", "1F0") == [
        "S002 rank 1: stage 1 micro-batch 1 has nothing; expected 1xF"
    ]
    assert len(findings("0F0 0F1 0B0", "1F0 1F1 1B0 1B1")) == 1


def test_what_replicas_lack_is_theirs():
    """S002 names the rank that runs the micro-batch; a run that no one sees is cut by replica."""
    two = Placement.bidirectional(2)

    assert findings("0F0 1F1 1B1 0B0", "0F1 1F0 1B0", placement=two) == [
        f"S002 rank 1: stage 0 micro-batch 1 has 1xF; {ONE_OF_EACH}"
    ]
    assert findings("0F0", "", placement=two, microbatches=6) == [
        "S002 rank 0: stage 0 micro-batches 1 to 2 have nothing; expected 1xF",
        "S002 rank 0: stage 1 micro-batches 3 to 5 have nothing; expected 1xF",
        "S002 rank 1: stage 0 micro-batches 3 to 5 have nothing; expected 1xF",
        "S002 rank 1: stage 1 micro-batches 0 to 2 have nothing; expected 1xF",
    ]
