"""``intandem verify``: findings and exit status."""

import json

import pytest

from intandem.cli.cmd_verify import main
from intandem.ir import format_program, format_schedule
from intandem.lowering import lower
from intandem.schedules import build_schedule

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
        (format_schedule(SCHEDULE), ["--max-activations", "0"], "the cap is 0"),
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

    assert "utf-8" in capsys.readouterr().err
