"""What is written is read back; anything else is refused with its line."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from order_samples import prog, readable_programs, readable_schedules, sched, valid_schedules

from intandem.errors import ScheduleParseError
from intandem.ir import (
    format_compute_csv,
    format_program,
    format_schedule,
    parse_compute_csv,
    parse_program,
    parse_schedule,
)

SCHEDULE = """\
intandem schedule 1
name: sample
placement: 0 1
microbatches: 1
rank 0: 0F0 0B0
rank 1: 1F0 1B0
"""
PROGRAM = """\
intandem program 1
name: sample
placement: 0 1
microbatches: 1
links: 0>1 / 1>0
rank 0: 0F0 send:0F0>1@1 recv:1B0>0@1 0B0 reduce
rank 1: recv:0F0>1@0 1F0 recompute:1F0 1B0 send:1B0>0@0 reduce
"""


def test_schedule_text():
    """The form is the one the documentation shows."""
    assert format_schedule(sched("0F0 0B0", "1F0 1B0")) == SCHEDULE


def test_program_text():
    """Instructions are written as they print."""
    program = prog(
        "0F0 send:0F0>1@1 recv:1B0>0@1 0B0 reduce",
        "recv:0F0>1@0 1F0 recompute:1F0 1B0 send:1B0>0@0 reduce",
    )

    assert format_program(program) == PROGRAM


@given(readable_schedules)
@settings(max_examples=150, deadline=None)
def test_schedules_come_back(schedule):
    """Any schedule with numbers from 0 upwards, valid or not."""
    assert parse_schedule(format_schedule(schedule)) == schedule


@given(readable_programs)
@settings(max_examples=150, deadline=None)
def test_programs_come_back(program):
    """Any program with numbers from 0 upwards, valid or not."""
    assert parse_program(format_program(program)) == program


@given(valid_schedules)
@settings(max_examples=50, deadline=None)
def test_compute_csv_comes_back(schedule):
    """Placement and counts are found again from the rows."""
    assert parse_compute_csv(format_compute_csv(schedule), name=schedule.name) == schedule


def test_compute_csv_without_the_marks_of_nothing():
    """Overlaps marked where a rank has no slot are left out; they are not verified."""
    schedule = replace(sched("0F0 0B0"), overlaps=frozenset({(0, -1), (0, 1), (5, 0)}))

    assert format_compute_csv(schedule) == "0F0,0B0\n"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("schedule 1", "schedule 2", "line 1: found 'intandem schedule 2'; expected intandem sch"),
        ("name: sample", "name: two words", "line 2: found 'name: two words'; expected 'name: '"),
        ("name: sample", 'name: "sample"', "line 2: found"),
        ("name: sample\n", "", "line 2: found 'placement: 0 1'; expected 'name: ' and a name"),
        ("0 1\n", "0 -1\n", "line 3: found 'placement: 0 -1'; expected 'placement: ' and one rank"),
        ("0 1\n", "0  1\n", "line 3: found 'placement: 0  1'"),
        ("batches: 1", "batches: 01", "line 4: found 'microbatches: 01'"),
        ("batches: 1", "batches: ١", "line 4: found"),  # noqa: RUF001
        ("0F0 0B0", "0F0 0B0 ", "line 5: found 'rank 0: 0F0 0B0 '"),
        ("0F0 0B0", "0F0  0B0", "line 5: '' is not an action; expected <stage>"),
        ("0F0 0B0", "0F0 0X0", "line 5: '0X0' is not an action"),
        ("rank 1", "rank 2", "line 6: found 'rank 2: 1F0 1B0'; expected 'rank 1: '"),
        ("1B0\n", "1B0\n\n", "line 7: found ''; expected 'rank 2: '"),
        ("1B0\n", "1B0\r\n", "line 6: found"),
    ],
)
def test_schedule_text_is_strict(old, new, message):
    """Each change of one place is refused, naming line, found and expected."""
    assert old in SCHEDULE

    with pytest.raises(ScheduleParseError) as caught:
        parse_schedule(SCHEDULE.replace(old, new, 1))

    assert str(caught.value).startswith(message)


def test_text_that_ends_early():
    """The line that is missing is named."""
    with pytest.raises(ScheduleParseError, match=r"line 3: found the end of the text; expected"):
        parse_schedule("intandem schedule 1\nname: x\n")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("program 1", "schedule 1", "line 1: found 'intandem schedule 1'; expected intandem prog"),
        ("0>1 / 1>0", "0>1 1>0", "line 5: found 'links: 0>1 1>0'; expected 'links: ' and pairs"),
        ("0>1 /", "0-1 /", "line 5: found"),
        ("send:0F0>1@1", "send:0F0>1", "line 6: 'send:0F0>1' is not a transfer; expected"),
        ("send:0F0>1@1", "sent:0F0>1@1", "line 6: 'sent:0F0>1@1' is not an instruction"),
        ("recompute:1F0", "recompute:F0", "line 7: 'F0' is not an action"),
        ("reduce", "reduce:", "line 6: 'reduce:' is not an instruction"),
    ],
)
def test_program_text_is_strict(old, new, message):
    """Each change of one place is refused, naming line, found and expected."""
    assert old in PROGRAM

    with pytest.raises(ScheduleParseError) as caught:
        parse_program(PROGRAM.replace(old, new, 1))

    assert str(caught.value).startswith(message)


def test_compute_csv_of_another_stack():
    """Idle slots are empty cells; I and W are halves of B; lines may end in CR LF."""
    text = "0F0,,0F1,0I0,0W0,0B1\r\n,1F0,1B0,1F1,1B1,\r\n"

    found = parse_compute_csv(text, name="theirs")

    assert str(found) == "rank 0: 0F0 0F1 0I0 0W0 0B1\nrank 1: 1F0 1B0 1F1 1B1"
    assert (found.placement.rank_of, found.num_microbatches) == ((0, 1), 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0F0,0X0\n", r"row 1 cell 2: '0X0' is not an action"),
        ("0F0\n0B0\n", r"row 2: found 0B0; stage 0 of micro-batch 0 is in row 1"),
        ("0F0\n2F0\n", r"found stages 0, 2; expected 0\.\.2 without a gap"),
    ],
)
def test_compute_csv_is_strict(text, message):
    """What cannot be a placement is refused."""
    with pytest.raises(ScheduleParseError, match=message):
        parse_compute_csv(text, name="x")
