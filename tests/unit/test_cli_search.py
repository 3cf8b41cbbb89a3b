"""``intandem search``: a schedule, how good it is, and files."""

import io
import json

import pytest

from intandem.cli import search_progress, slow_work
from intandem.cli.cmd_search import main
from intandem.cli.cmd_show import main as show
from intandem.cli.search_progress import searching
from intandem.ir import parse_compute_csv
from intandem.planner import Progress
from intandem.rules import verify

SMALL = ["--ranks", "3", "--microbatches", "4", "--solver", "none", "--effort", "0.2"]


def search_json(capsys, *argv):
    assert main([*SMALL, *argv, "--format", "json"]) == 0
    out = capsys.readouterr()
    assert out.err == ""
    return json.loads(out.out)


def test_json(capsys):
    """What show prints of a schedule, and what is known of the search."""
    found = search_json(capsys, "--memory-cap", "3")

    assert main([*SMALL, "--memory-cap", "3", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert (found["num_ranks"], found["num_microbatches"], found["num_stages"]) == (3, 4, 3)
    assert found["placement"] == [0, 1, 2]
    assert found["makespan_s"] == found["lower_bound_s"] == 14.0
    assert found["above_bound"] == 0.0
    assert found["proven"] is True
    assert max(found["peak_activations"]) <= 3
    assert (found["memory_cap"], found["seed"], found["recompute"]) == (3, 0, [])
    assert {len(row) for row in found["actions"]} <= {8, 9, 10, 11, 12}


def test_never_longer_than_a_schedule_that_fits(capsys):
    """With unequal times, transfers, and two stages per rank."""
    costs = ["--costs", "F=1,I=1.3,W=0.6", "--transfer", "0.2", "--stages-per-rank", "2"]
    found = search_json(capsys, *costs, "--memory-cap", "9", "--objective", "rank")

    argv = ["interleaved", *SMALL[:4], *costs, "--memory-cap", "9", "--format", "json"]
    assert show(argv) == 0
    known = json.loads(capsys.readouterr().out)
    assert found["rank_span_s"] <= known["rank_span_s"]
    assert found["objective"] == "rank"
    assert found["num_stages"] == 6


def test_text(capsys):
    """Drawing and figures as show has them, the distance from the bound, and whether it is best."""
    assert main([*SMALL, "--columns", "80"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "searched · 3 ranks · 4 micro-batches"
    assert lines[2].startswith("rank 0  F0 F1")
    bound = "lower bound   14.0 s, for any schedule that was allowed; makespan within 0.0 % of it"
    assert bound in lines
    assert lines[-1].startswith("optimal       proven, nothing that was allowed is shorter;")


def test_files(capsys, tmp_path):
    """Every kind; the order is valid, and as long when it is shown."""
    files = {kind: tmp_path / f"found.{kind}" for kind in ("svg", "html", "trace", "csv")}
    argv = [word for kind, file in files.items() for word in (f"--{kind}", str(file))]

    found = search_json(capsys, "--memory-cap", "2", *argv)

    assert files["svg"].read_text(encoding="utf-8").startswith("<svg ")
    assert files["html"].read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert json.loads(files["trace"].read_text())["traceEvents"]
    verify(parse_compute_csv(files["csv"].read_text(), name="found"), max_activations=2)
    assert show([str(files["csv"]), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["makespan_s"] == found["makespan_s"]


def test_placement_and_backwards_as_asked(capsys):
    """A wave of two stages per rank, whole backwards."""
    argv = ["--stages-per-rank", "2", "--placement", "wave", "--backward", "whole"]

    found = search_json(capsys, *argv)

    assert found["placement"] == [0, 1, 2, 2, 1, 0]
    kinds = {action.strip("0123456789") for row in found["actions"] for action in row}
    assert kinds == {"F", "B"}


def test_stages_as_the_costs_list_them(capsys, tmp_path):
    """A file of six stages makes two per rank; bytes may be the cap."""
    file = tmp_path / "costs.json"
    costs = {
        "forward_s": [1, 1, 2, 1, 1, 1],
        "backward_input_s": 1,
        "backward_weight_s": 1,
        "activation_bytes": [10, 10, 20, 10, 10, 10],
    }
    file.write_text(json.dumps(costs))

    found = search_json(capsys, "--costs", str(file), "--memory-cap-bytes", "60")

    assert found["num_stages"] == 6
    assert found["memory_cap_bytes"] == 60


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--memory-cap", "0"], "--memory-cap must be 1 or more, got 0"),
        (
            ["--memory-cap", "1", "--stages-per-rank", "2"],
            "may hold 1 stage activations and needs 2; the smallest feasible cap is 2 stage",
        ),
        (
            ["--memory-cap-bytes", "5"],
            "--memory-cap-bytes needs --costs FILE with activation_bytes",
        ),
        (["--memory-cap", "2", "--memory-cap-bytes", "5"], "are both given; leave one out"),
        (["--ranks", "0"], "--ranks must be 1 or more, got 0"),
        (["--costs", "F=1"], "costs: I is missing in 'F=1'"),
        (["--costs", "nowhere.json"], "--costs nowhere.json: expected F=1,I=1,W=1, F=1,B=2 or"),
        (["--time-limit", "-1"], "--time-limit must be more than 0, got -1"),
        (["--effort", "0"], "--effort must be more than 0, got 0"),
        (["--recompute"], "--recompute saves bytes, so it goes with --memory-cap-bytes"),
        (["--objective", "both"], "both"),
        (["--solver", "cplex"], "cplex"),
    ],
)
def test_refused(capsys, argv, message):
    """A message on stderr, nothing on stdout, exit status 2."""
    assert main([*SMALL, *argv]) == 2

    out = capsys.readouterr()
    assert message in " ".join(out.err.split())
    assert out.out == ""


def test_help(capsys):
    """Examples are part of it."""
    assert main(["--help"]) == 0

    assert "intandem search --ranks 4 --microbatches 8 --memory-cap 4" in capsys.readouterr().out


class Terminal(io.StringIO):
    def isatty(self):
        return True


class TestProgress:
    def shown(self, monkeypatch, quiet_s, stream):
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr("sys.stderr", stream)
        monkeypatch.setattr(slow_work, "QUIET_S", quiet_s)
        with searching() as on_progress:
            on_progress(Progress(103.0, 100.0, "annealed", 0.5))
            deadline = [t for t in slow_work.threading.enumerate() if hasattr(t, "interval")]
            for timer in deadline if quiet_s == 0 else ():
                timer.join()
        return stream.getvalue()

    def test_a_line_on_a_terminal(self, monkeypatch):
        """The best so far, how far it is from the bound, and what found it."""
        text = self.shown(monkeypatch, 0, Terminal())

        assert "103 s, within 3.0 % of the lower bound" in text
        assert "annealed" in text

    def test_below_the_bound(self):
        """Shown as it is, unless it is by rounding alone."""
        for value_s, above in ((99.0, "-1.0 %"), (100.0 - 1e-12, "0.0 %")):
            text = search_progress._description(Progress(value_s, 100.0, "annealed", 0.5))
            assert f"within {above} of" in text

    def test_nothing_if_it_is_quick(self, monkeypatch):
        """The line waits for two seconds."""
        assert slow_work.QUIET_S == 2.0
        assert self.shown(monkeypatch, 1000.0, Terminal()) == ""

    def test_nothing_elsewhere(self, monkeypatch):
        """Files and pipes get results alone."""
        assert self.shown(monkeypatch, 0, io.StringIO()) == ""
