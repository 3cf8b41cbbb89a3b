"""Each rule of programs has a smallest program that breaks it, with its exact message."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from order_samples import any_programs, prog, valid_schedules

from intandem.errors import ScheduleVerifyError
from intandem.ir import StageLinks
from intandem.lowering import lower
from intandem.rules import check_memory, check_program, verify

GOOD = (
    "0F0 send:0F0>1@1 recv:1B0>0@1 0B0",
    "recv:0F0>1@0 1F0 1B0 send:1B0>0@0",
)


def changed(old, new, **options):
    """The good program with one place changed."""
    assert sum(old in row for row in GOOD) == 1
    return prog(*(row.replace(old, new) for row in GOOD), **options)


BROKEN = {
    "compute twice": (
        changed("1F0", "1F0 1F0"),
        [
            "S002 rank 1: stage 1 micro-batch 0 has 2xF, 1xB; "
            "expected 1xF and either 1xB or 1xI with 1xW"
        ],
    ),
    "compute on the wrong rank": (
        prog("0F0 0B0 1F0", "1B0", links=StageLinks((), ())),
        ["S001 rank 0 slot 2: 1F0 belongs on rank 1"],
    ),
    "link out of range": (
        prog(*GOOD, links=StageLinks(((0, 2),), ())),
        ["P001 rank 0: activations link 0>2: stages end at 1"],
    ),
    "links the wrong way": (
        prog(*GOOD, links=StageLinks(((1, 0),), ((0, 1),))),
        [
            "P001 rank 0: gradients link 0>1 does not lead back up the pipeline",
            "P001 rank 1: activations link 1>0 does not lead down the pipeline",
        ],
    ),
    "link twice": (
        prog(*GOOD, links=StageLinks(((0, 1), (0, 1)), ((1, 0),))),
        ["P001 rank 0: activations link 0>1 is listed twice"],
    ),
    "send missing": (
        changed("send:0F0>1@1 ", ""),
        ["P002 rank 0: 0F0>1 is sent never; expected once"],
    ),
    "receive missing": (
        changed("recv:1B0>0@1 ", ""),
        ["P002 rank 0: 1B0>0 is received never; expected once"],
    ),
    "send twice": (
        changed("send:0F0>1@1", "send:0F0>1@1 send:0F0>1@1"),
        ["P002 rank 0: 0F0>1 is sent twice; expected once"],
    ),
    "no such message": (
        changed("1B0 send:1B0>0@0", "1B0 send:1B0>0@0 send:1F0>0@0"),
        ["P002 rank 1 slot 4: send:1F0>0@0 is of no link between two ranks"],
    ),
    "no such micro-batch": (
        changed("recv:0F0>1@0", "recv:0F0>1@0 recv:0F1>1@0"),
        ["P002 rank 1 slot 1: recv:0F1>1@0 is of no link between two ranks"],
    ),
    "weight gradients are not handed over": (
        prog(
            GOOD[0].replace("1B0", "1I0"),
            "recv:0F0>1@0 1F0 1I0 send:1I0>0@0 1W0 send:1W0>0@0",
        ),
        ["P002 rank 1 slot 5: send:1W0>0@0 is of no link between two ranks"],
    ),
    "receive of a whole backward where it is split": (
        changed("1B0 send:1B0>0@0", "1I0 send:1I0>0@0 1W0"),
        ["P002 rank 0 slot 2: recv:1B0>0@1 is of 1B0, which no rank does"],
    ),
    "wrong peer": (
        changed("send:0F0>1@1", "send:0F0>1@0"),
        ["P003 rank 0 slot 1: send:0F0>1@0 belongs on rank 0 with peer 1"],
    ),
    "send on the wrong rank": (
        prog("0F0 recv:1B0>0@1 0B0", "send:0F0>1@1 recv:0F0>1@0 1F0 1B0 send:1B0>0@0"),
        ["P003 rank 1 slot 0: send:0F0>1@1 belongs on rank 0 with peer 1"],
    ),
    "send before its compute": (
        changed("0F0 send:0F0>1@1", "send:0F0>1@1 0F0"),
        ["P004 rank 0 slot 0: send:0F0>1@1 comes before 0F0; expected it after"],
    ),
    "receive after its compute": (
        changed("recv:0F0>1@0 1F0", "1F0 recv:0F0>1@0"),
        ["P004 rank 1 slot 1: recv:0F0>1@0 comes after 1F0, which needs it"],
    ),
    "sends and receives in another order": (
        prog(
            "0F0 send:0F0>1@1 0F1 send:0F1>1@1 recv:1B0>0@1 0B0 recv:1B1>0@1 0B1",
            "recv:0F1>1@0 recv:0F0>1@0 1F0 1B0 send:1B0>0@0 1F1 1B1 send:1B1>0@0",
            microbatches=2,
        ),
        ["P005 rank 1 slot 0: recv:0F1>1@0 is in the place of send:0F0>1@1 on rank 0"],
    ),
    "receive too early": (
        prog("recv:1B0>0@1 0F0 send:0F0>1@1 0B0", GOOD[1]),
        [
            "P006 rank 0 slot 0: recv:1B0>0@1 waits forever: rank 1 stands at slot 0, recv:0F0>1@0",
            "P006 rank 1 slot 0: recv:0F0>1@0 waits forever: rank 0 stands at slot 0, recv:1B0>0@1",
        ],
    ),
    "recomputed before its forward": (
        changed("1F0 1B0", "recompute:1F0 1F0 1B0"),
        [
            "P007 rank 1 slot 1: recompute:1F0 comes before its forward on this rank; "
            "expected it between forward and backward"
        ],
    ),
    "recomputed after its backward": (
        changed("1F0 1B0", "1F0 1B0 recompute:1F0"),
        [
            "P007 rank 1 slot 3: recompute:1F0 comes after its backward; "
            "expected it between forward and backward"
        ],
    ),
    "recomputed twice": (
        changed("1F0 1B0", "1F0 recompute:1F0 recompute:1F0 1B0"),
        ["P007 rank 1 slot 3: recompute:1F0 is done twice; expected it once"],
    ),
    "a backward recomputed": (
        changed("1F0 1B0", "1F0 recompute:1B0 1B0"),
        ["P007 rank 1 slot 2: recompute:1B0 is no forward"],
    ),
    "sent between two that overlap": (
        prog(
            "0F0 send:0F0>1@1 0F1& send:0F1>1@1 recv:1B0>0@1 0B0 recv:1B1>0@1 0B1",
            "recv:0F0>1@0 1F0 recv:0F1>1@0 1B0 send:1B0>0@0 1F1 1B1 send:1B1>0@0",
            microbatches=2,
        ),
        [
            "P009 rank 0 slot 3: send:0F1>1@1 stands between 0F1& 0B0; "
            "expected it before or after both",
            "P009 rank 0 slot 4: recv:1B0>0@1 stands between 0F1& 0B0; "
            "expected it before or after both",
        ],
    ),
    "received too late for two that overlap": (
        prog(
            "0F0 send:0F0>1@1 recv:1B0>0@1 0F1& 0B0 send:0F1>1@1 recv:1B1>0@1 0B1",
            "recv:0F0>1@0 1F0 recv:0F1>1@0 1B0 send:1B0>0@0 1F1 1B1 send:1B1>0@0",
            microbatches=2,
        ),
        [
            "P006 rank 0 slot 2: recv:1B0>0@1 waits forever: rank 1 stands at slot 2, recv:0F1>1@0",
            "P006 rank 1 slot 2: recv:0F1>1@0 waits forever: rank 0 stands at slot 2, recv:1B0>0@1",
        ],
    ),
    "reduced twice": (
        changed("1B0 send:1B0>0@0", "1B0 send:1B0>0@0 reduce reduce"),
        ["P008 rank 1 slot 5: reduces again; slot 4 did"],
    ),
    "reduced before the last backward": (
        changed("1F0 1B0", "1F0 reduce 1B0"),
        ["P008 rank 1 slot 2: reduces before 1B0; expected it after"],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_says_what_is_wrong(name):
    """Every finding is reported at once, with rank, slot and values."""
    program, expected = BROKEN[name]

    assert [str(d) for d in check_program(program)] == expected


@pytest.mark.parametrize("name", BROKEN)
def test_a_clean_schedule_vouches_for_its_own_computes_only(name):
    program, _ = BROKEN[name]
    clean = prog(*GOOD).compute_order()
    assert check_program(program, clean) == check_program(program)


def test_slots_are_those_of_instructions():
    """A finding about a compute action counts transfers, too."""
    program = changed("0B0", "0B0 0F7")

    assert [str(d) for d in check_program(program)] == [
        "S005 rank 0 slot 4: 0F7 has no micro-batch: micro-batches end at 0"
    ]
    assert check_memory(lower_of_two(), 1)[0].slot == 2


def lower_of_two():
    """Rank 0: 0F0 send 0F1 ..., so its second forward is in slot 2."""
    return prog(
        "0F0 send:0F0>1@1 0F1 send:0F1>1@1 recv:1B0>0@1 0B0 recv:1B1>0@1 0B1",
        "recv:0F0>1@0 1F0 1B0 send:1B0>0@0 recv:0F1>1@0 1F1 1B1 send:1B1>0@0",
        microbatches=2,
    )


def test_good_programs_are_silent():
    """The smallest, and one with two micro-batches."""
    verify(prog(*GOOD))
    verify(lower_of_two())


def test_verify_raises_all():
    """Programs go through the same door as schedules."""
    with pytest.raises(ScheduleVerifyError, match=r"2 problem\(s\)"):
        verify(prog("reduce 0F0 send:0F0>1@1 0B0", GOOD[1]))


def test_sends_may_wait():
    """A send that is not directly after its compute is slower, not wrong."""
    verify(prog(GOOD[0].replace("1B0", "1I0"), "recv:0F0>1@0 1F0 1I0 1W0 send:1I0>0@0"))


@given(any_programs)
@settings(max_examples=300, deadline=None)
def test_takes_any_garbage(program):
    """Findings, never an exception."""
    assert check_program(program) or any(program.instructions)
    check_memory(program, 1)


@given(valid_schedules, any_programs)
@settings(max_examples=100, deadline=None)
def test_takes_garbage_among_good_instructions(schedule, garbage):
    """The rules on messages see garbage, too: a valid program with rows of garbage appended."""
    program = lower(schedule)
    rows = [
        (*row, *(garbage.instructions[rank] if rank < len(garbage.instructions) else ()))
        for rank, row in enumerate(program.instructions)
    ]

    check_program(replace(program, instructions=tuple(rows)))


@given(valid_schedules)
@settings(max_examples=50, deadline=None)
def test_skips_are_messages_like_any(schedule):
    """Links that jump over stages lower to programs that verify."""
    num_stages = schedule.num_stages
    forward = [(s, t) for t in range(num_stages) for s in range(t)]
    links = StageLinks(tuple(forward), tuple((t, s) for s, t in forward))

    verify(lower(schedule, links))
