"""``intandem verify``: findings and exit status."""

import json

import pytest

from intandem.cli.cmd_verify import main
from intandem.ir import format_compute_csv, format_program, format_schedule
from intandem.lowering import lower
from intandem.schedules import build_schedule, schedule_names

SCHEDULE = build_schedule("gpipe", num_ranks=2, num_microbatches=3)


@pytest.mark.parametrize("text", [format_schedule(SCHEDULE), format_program(lower(SCHEDULE))])
def test_clean(capsys, tmp_path, text):
    """Schedules and programs; exit status 0."""
    file = tmp_path / "order.txt"
    file.write_text(text)

    assert main([str(file)]) == 0

    kind = text.split()[1]
    expected = f"{kind} gpipe, 2 ranks, 3 micro-batches: no problems\n"
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize("name", schedule_names())
@pytest.mark.parametrize("form", ["schedule", "program", "csv"])
def test_every_schedule_in_every_form(capsys, tmp_path, name, form):
    """Stages held twice, actions that overlap, and forwards alone; nothing is found."""
    schedule = build_schedule(name, num_ranks=4, num_microbatches=8)
    write = {
        "schedule": format_schedule,
        "program": lambda s: format_program(lower(s)),
        "csv": format_compute_csv,
    }[form]
    file = tmp_path / f"order.{form}"
    file.write_text(write(schedule))

    assert main([str(file), "--format", "json"]) == 0

    assert json.loads(capsys.readouterr().out)["ok"] is True


@pytest.mark.parametrize(
    ("name", "broken", "whole", "code"),
    [
        ("dualpipe", "3F6& 0B0", "3F6& 3F6", "S006"),
        ("chimera", "3F4 3B4", "3B4 3F4", "S003"),
        ("forward-only", "0F0 0F1", "0F1", "S002"),
    ],
)
def test_what_is_broken_in_them(capsys, tmp_path, name, broken, whole, code):
    """A pair that is none, an order that waits forever, a forward that is missing."""
    text = format_schedule(build_schedule(name, num_ranks=4, num_microbatches=8))
    assert broken in text
    file = tmp_path / "order.txt"
    file.write_text(text.replace(broken, whole, 1))

    assert main([str(file)]) == 1

    assert code in capsys.readouterr().out


@pytest.mark.parametrize("name", ["--memory-cap", "--max-activations"])
def test_names_of_the_cap(capsys, tmp_path, name):
    """As the other commands call it, and as it was called."""
    file = tmp_path / "order.txt"
    file.write_text(format_schedule(SCHEDULE))

    assert main([str(file), name, "2"]) == 1
    assert "the cap is 2" in capsys.readouterr().out


def test_help(capsys):
    """The example takes the name that every command takes."""
    assert main(["--help"]) == 0

    out = capsys.readouterr().out
    assert "intandem verify mine.csv --memory-cap 4" in out
    assert "--memory-cap A" in out


def test_findings(capsys, tmp_path):
    """Each on a line of its own; exit status 1."""
    file = tmp_path / "bad.csv"
    file.write_text("0B0,0F0\n1F0,1B0\n")

    assert main([str(file)]) == 1

    assert capsys.readouterr().out.splitlines() == [
        "S003 rank 0 slot 0: 0B0 waits forever for 0F0 and 1B0 or 1I0",
        "S003 rank 1 slot 0: 1F0 waits forever for 0F0",
        "schedule bad, 2 ranks, 1 micro-batch: 2 problem(s)",
    ]


def test_json(capsys, tmp_path):
    """One object, with every finding's parts."""
    file = tmp_path / "order.txt"
    file.write_text(format_schedule(SCHEDULE))

    assert main([str(file), "--max-activations", "2", "--format", "json"]) == 1

    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["schedule"], found["ok"]) == ("schedule", "gpipe", False)
    first = "0F2 makes 3 stage activations held, 3 at the peak; the cap is 2"
    assert found["diagnostics"][0] == {"code": "M001", "rank": 0, "slot": 2, "message": first}


@pytest.mark.parametrize(
    ("text", "argv", "message"),
    [
        ("intandem schedule 2\n", [], "line 1: found 'intandem schedule 2'"),
        ("intandem program 2\n", [], "line 1: found 'intandem program 2'; expected intandem prog"),
        ("", [], "line 1: found ''"),
        ("intandem schedule 1\nname: x\n", [], "line 3: found the end of the text"),
        (
            format_schedule(SCHEDULE),
            ["--max-activations", "0"],
            "--memory-cap must be 1 or more, got 0",
        ),
        ("", ["--max"], "--max"),
    ],
)
def test_cannot_be_read(capsys, tmp_path, text, argv, message):
    """A message on stderr, nothing on stdout; exit status 2."""
    file = tmp_path / "order.txt"
    file.write_text(text)

    assert main([str(file), *argv]) == 2

    out = capsys.readouterr()
    assert message in out.err
    assert out.out == ""


def test_no_such_file(capsys):
    """The name is in the message."""
    assert main(["nowhere.csv"]) == 2

    assert "nowhere.csv" in capsys.readouterr().err


def test_not_text(capsys, tmp_path):
    """Bytes that are no text are refused like any other content."""
    file = tmp_path / "order.txt"
    file.write_bytes(b"\xff\xfe\x00")

    assert main([str(file)]) == 2

    assert "order.txt is not text in UTF-8" in capsys.readouterr().err
