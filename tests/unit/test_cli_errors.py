"""What is typed wrong is answered in one sentence: the value, and what to do; exit status 2."""

import importlib
import subprocess
import sys

import pytest

from intandem.cli.main import main
from intandem.cli.objections import objection
from intandem.schedules import build_schedule, schedule_names

SIZES = ["--ranks", "4", "--microbatches", "8"]
SHOW = ["show", "1f1b", *SIZES]
SEARCH = ["search", *SIZES]
JOB = """
import torch
from torch import nn

import intandem as it


def job():
    return it.Job(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)), torch.randn(8, 4), loss)


def loss(output, batch):
    return output.square().mean()
"""
INTERNALS = ("NoneType", "<class", "base 10", "Errno", "codec", "Traceback", "instantiated")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Files that are no text, no JSON, no schedule; and some that are right."""
    monkeypatch.chdir(tmp_path)
    for name in ("bytes.csv", "bytes.schedule", "bytes.json", "bytes.py"):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00")
    for name in ("empty.csv", "empty.schedule"):
        (tmp_path / name).write_text("")
    (tmp_path / "cut.json").write_text('{"forward_s": [1')
    (tmp_path / "three.json").write_text(
        '{"forward_s": [1, 1, 1], "backward_input_s": 1, "backward_weight_s": 1}'
    )
    (tmp_path / "no_actions.csv").write_text("F0,F1\n")
    (tmp_path / "good.csv").write_text("0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1\n")
    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "sub").mkdir()
    return tmp_path


def said(capsys, argv):
    """Run; nothing but one line on standard error, exit status 2."""
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if not line.startswith("checking ")]
    assert len(lines) == 1, err
    assert not [word for word in INTERNALS if word in lines[0]]
    return lines[0]


class TestOptions:
    @pytest.mark.parametrize(
        ("argv", "line"),
        [
            (["show", "1f1b", "--ranks", "four"], "--ranks is 'four'; expected a whole number"),
            (["show", "1f1b", "--ranks=4.5"], "--ranks is '4.5'; expected a whole number"),
            ([*SHOW, "--transfer", "x"], "--transfer is 'x'; expected a number"),
            ([*SHOW, "--format", "xml"], "--format is 'xml'; expected text or json"),
            ([*SHOW, "--objective", "all"], "--objective is 'all'; expected global or rank"),
            (["show", "1f1b", "--ranks"], "--ranks needs a value; expected a whole number"),
            ([*SHOW, "--svg", "--html"], "--svg needs a value; expected the name of a file"),
            (["show", "1f1b", "--rank", "4"], "unknown option --rank; did you mean --ranks?"),
            ([*SHOW, "--xyz"], "unknown option --xyz; see intandem show --help"),
            (["show", "1f1b", "gpipe"], "'gpipe' is an argument too many; see intandem show --h"),
            (["show"], "needs SCHEDULE; see intandem show --help"),
            (["search"], "needs --ranks and --microbatches; see intandem search --help"),
            ([*SEARCH, "--solver", "x"], "--solver is 'x'; expected auto, none or cp-sat"),
            (["verify"], "needs FILE; see intandem verify --help"),
            (["verify", "a", "--max-activations", "x"], "--max-activations is 'x'; expected a wh"),
            (["check", "a.py", "--dtype", "half"], "--dtype is 'half'; expected float64 or own"),
            (["check", "a.py", "--ranks", "four"], "--ranks is 'four'; expected a whole number"),
            (["demo", "--seed", "x"], "--seed is 'x'; expected a whole number"),
            (["demo", "--no-tide"], "unknown option --no-tide; did you mean --no-tied?"),
        ],
    )
    def test_one_sentence(self, capsys, argv, line):
        """No box, no types of Python; the nearest option where one is near."""
        assert said(capsys, argv).startswith(f"intandem {argv[0]}: {line}")

    @pytest.mark.parametrize(
        ("argv", "line"),
        [
            (["--ranks", "four", "a.py"], "--ranks: 'four' is no number; expected a whole number "),
            (["--ranks", "2"], "nothing to run: give a SCRIPT, or -m MODULE"),
            (["--ranks", "0", "a.py"], "--ranks must be from 1 to 256, got 0"),
        ],
    )
    def test_run(self, capsys, argv, line):
        """After its usage."""
        with pytest.raises(SystemExit, match="2"):
            main(["run", *argv])
        assert line in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("command", "argv"),
        [
            ("show", ["1f1b", "--stages_per_rank", "2", "--svg=a.svg", "--transfer", "-1"]),
            ("search", ["--ranks", "2", "--microbatches=4", "--recompute"]),
            ("verify", ["a.csv", "--memory-cap", "2", "--format", "json"]),
            ("check", ["a.py", "--bisect", "--script-args=--lr 3"]),
            ("demo", ["--no-tied", "--seconds", "0.5"]),
        ],
    )
    def test_none_to_what_is_right(self, command, argv):
        """Words that can be read are not objected to."""
        kind = importlib.import_module(f"intandem.cli.cmd_{command}").Arguments
        assert objection(kind, argv, command=command) is None


class TestFiles:
    @pytest.mark.parametrize(
        ("argv", "line"),
        [
            (["show", "bytes.csv"], "bytes.csv is not text in UTF-8 (byte 0 is 0xff)"),
            (["verify", "bytes.schedule"], "bytes.schedule is not text in UTF-8"),
            ([*SHOW, "--costs", "bytes.json"], "--costs bytes.json is not text in UTF-8"),
            ([*SEARCH, "--costs", "bytes.json"], "--costs bytes.json is not text in UTF-8"),
            ([*SHOW, "--machine", "bytes.json"], "--machine bytes.json is not text in UTF-8"),
            ([*SHOW, "--costs", "cut.json"], "cut.json: costs: not JSON: "),
            ([*SHOW, "--costs", "three.json"], "three.json: costs: 'forward_s' has 3 values; e"),
            (["show", "none.csv"], "there is no file none.csv"),
            (["show", "sub/none"], "there is no file sub/none"),
            (["show", "sub"], "sub is a folder; expected a schedule's name or a file"),
            (["show", "empty.csv"], "empty.csv: the file is empty; expected a row of actions"),
            (["verify", "none.csv"], "none.csv: there is no such file"),
            (["verify", "sub"], "sub is a folder; expected a file"),
            (["verify", "empty.csv"], "empty.csv: the file is empty; expected a row of actions"),
            (["verify", "empty.schedule"], "empty.schedule: line 1: found ''"),
            (["verify", "no_actions.csv"], "no_actions.csv: row 1 cell 1: 'F0' is not an action"),
        ],
    )
    def test_what_is_read(self, folder, capsys, argv, line):
        """The file is named; where it was an option's, so is the option."""
        assert said(capsys, argv).startswith(f"intandem {argv[0]}: {line}")

    @pytest.mark.parametrize(
        ("file", "why"),
        [
            ("sub", "--{} sub is a folder; expected the name of a file in it"),
            ("none/a", "--{} none/a: there is no folder none; make it first"),
        ],
    )
    @pytest.mark.parametrize("option", ["svg", "html", "trace", "csv"])
    def test_what_is_written(self, folder, capsys, monkeypatch, option, file, why):
        """Refused before anything is computed."""
        monkeypatch.setattr("intandem.planner.search", None)
        monkeypatch.setattr("intandem.cli.cmd_show.show_order", None)
        for command in (SHOW, SEARCH):
            line = said(capsys, [*command, f"--{option}", file])
            assert line == f"intandem {command[0]}: {why.format(option)}"

    @pytest.mark.parametrize("file", ["sub", "none/a.html"])
    def test_the_report_of_the_demo(self, folder, capsys, file):
        """Refused before it trains."""
        assert f"--report {file}" in said(capsys, ["demo", "--report", file])

    def test_files_of_one_schedule(self, folder, capsys, monkeypatch):
        """Refused before all are built."""
        monkeypatch.setattr("intandem.cli.compare.compare", None)
        line = said(capsys, ["show", "all", *SIZES, "--csv", "a.csv"])
        assert line == "intandem show: --csv is of one schedule; name it in place of all"


class TestValues:
    @pytest.mark.parametrize(
        ("argv", "line"),
        [
            ([*SHOW, "--columns", "0"], "show: --columns is 0, which is too few for a drawing; u"),
            ([*SEARCH, "--columns", "3"], "search: --columns is 3, which is too few for a drawi"),
            (["verify", "good.csv", "--memory-cap", "0"], "verify: --memory-cap must be 1 or more"),
            (
                ["show", "zb-v", *SIZES, "--memory-cap", "1"],
                "show: zb-v within 1 stage activation(s) per rank; a rank holds an activation "
                "of each of its two stages, so use 2 or more",
            ),
            (["demo", "--seconds", "nan"], ": nothing to train in nan"),
            (
                [*SEARCH, "--costs", "three.json"],
                "search: --costs three.json has 3 stages, and --ranks is 4; expected a multiple",
            ),
            (
                [*SEARCH, "--memory-cap-bytes", "9"],
                "search: --memory-cap-bytes needs --costs FILE with activation_bytes; or give",
            ),
            (
                [*SEARCH, "--memory-cap", "9", "--memory-cap-bytes", "9"],
                "search: --memory-cap and --memory-cap-bytes are both given; leave one out",
            ),
        ],
    )
    def test_numbers(self, folder, capsys, argv, line):
        """The value, and the least that would do."""
        assert said(capsys, argv).startswith(f"intandem{'' if line[0] == ':' else ' '}{line}")

    def test_the_least_cap_of_zb_v(self):
        """Is kept within on any number of ranks."""
        for num_ranks in range(1, 7):
            build_schedule("zb-v", num_ranks=num_ranks, num_microbatches=3, max_activations=2)


class TestCheck:
    @pytest.mark.parametrize(
        ("argv", "line"),
        [
            (["--replicas", "0"], "--replicas must be 1 or more, got 0"),
            (
                ["--ranks", "3", "--replicas", "2"],
                "--replicas 2 do not share --ranks 3 evenly; use --ranks 4",
            ),
            (["--worst", "-1"], "--worst must be 1 or more, got -1"),
            (["--schedule", "bytes.csv"], "bytes.csv is not text in UTF-8"),
            (["--schedule", "empty.csv"], "empty.csv: the file is empty"),
        ],
    )
    def test_options(self, folder, capsys, argv, line):
        """Refused before the user's code runs."""
        assert said(capsys, ["check", "job.py:job", *argv]).startswith(f"intandem: {line}")

    @pytest.mark.parametrize("target", ["bytes.py", "bytes.py:job"])
    def test_bytes_for_a_script(self, folder, capsys, target):
        """Named, as any other script that is no Python."""
        assert "bytes.py" in said(capsys, ["check", target])

    def test_a_compute_order(self, folder, capsys):
        """Runs, with as many micro-batches as the file has."""
        assert main(["check", "job.py:job", "--schedule", "good.csv"]) == 0

        assert "2 ranks, schedule good, 2 micro-batches" in capsys.readouterr().out


def test_names_are_told_from_paths(capsys):
    """What looks like a name gets the names there are; what looks like a path does not."""
    assert schedule_names()[0] in said(capsys, ["show", "1f2b", *SIZES])
    assert schedule_names()[0] not in said(capsys, ["show", "sub/1f2b", *SIZES])


def test_as_a_module():
    """``python -m intandem`` is the same command."""
    call = [sys.executable, "-m", "intandem", "show", "1f1b", "--ranks", "four"]
    done = subprocess.run(call, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr == "intandem show: --ranks is 'four'; expected a whole number\n"
