"""``intandem show``: figures, drawing and files."""

import json
import re
from dataclasses import replace

import pytest

from intandem.cli.cmd_show import main
from intandem.cli.figures import show_order
from intandem.costs import CostModel
from intandem.ir import format_program, format_schedule, parse_compute_csv
from intandem.lowering import lower
from intandem.schedules import build_schedule, schedule_names
from intandem.schedules.registry import FAMILIES

UNIT = ["1f1b", "--ranks", "4", "--microbatches", "8", "--costs", "F=1,I=1,W=1"]


def show_json(capsys, *argv):
    assert main([*argv, "--format", "json"]) == 0
    out = capsys.readouterr()
    assert out.err == ""
    return json.loads(out.out)


def test_json(capsys):
    """Every figure of the textbook's example."""
    found = show_json(capsys, *UNIT)

    assert found.pop("bubble_ratio") == pytest.approx(3 / 11)
    assert found.pop("rank_bubble_ratio") == pytest.approx(3 / 11)
    assert found.pop("actions")[3][:4] == ["3F0", "3B0", "3F1", "3B1"]
    assert found == {
        "schedule": "1f1b",
        "num_ranks": 4,
        "num_microbatches": 8,
        "num_stages": 4,
        "placement": [0, 1, 2, 3],
        "makespan_s": 33.0,
        "rank_span_s": 33.0,
        "peak_activations": [4, 3, 2, 1],
        "lower_bound_s": 27.0,
        "objective": "global",
        "above_bound": pytest.approx(6 / 27),
        "steps": None,
        "replicas": [],
        "peak_held_bytes": None,
        "peak_bytes": None,
        "overlaps": [],
        "weight_copies": 1,
    }


def test_transfer(capsys):
    """Latency makes 1F1B longer with every micro-batch."""
    found = show_json(capsys, *UNIT, "--transfer", "1")

    assert found["makespan_s"] > 33 + 2 * 3


def test_text(capsys):
    """The grid and the figures, in the width asked for."""
    assert main([*UNIT, "--columns", "70"]) == 0

    out = capsys.readouterr().out
    assert out.startswith("1f1b · 4 ranks · 8 micro-batches\n\nrank 0  F0 F1 F2 F3 ...")
    drawing, figures = out.rsplit("\n\n", 1)
    assert figures.splitlines() == [
        "makespan      33.0 s, bubble ratio 27.3 %",
        "longest rank  33.0 s, bubble ratio 27.3 %",
        "lower bound   27.0 s, for any schedule on this placement; makespan within 22.2 % of it",
        "activations   4, of a stage at most; per rank: 4 3 2 1",
        "weights       1\N{MULTIPLICATION SIGN}, the model, over all ranks",
    ]
    assert max(map(len, drawing.splitlines())) <= 70


def test_files_are_written_and_read(capsys, tmp_path):
    """SVG and CSV; the CSV is shown as the schedule it came from."""
    svg, csv = tmp_path / "a.svg", tmp_path / "a.csv"

    assert main([*UNIT, "--svg", str(svg), "--csv", str(csv)]) == 0
    capsys.readouterr()

    assert svg.read_text(encoding="utf-8").startswith("<svg ")
    assert parse_compute_csv(csv.read_text(), name="a").num_microbatches == 8
    assert show_json(capsys, str(csv))["makespan_s"] == 33.0


def test_table_of_spans(capsys, tmp_path):
    """A line for each action, with when it runs; of one schedule alone."""
    table = tmp_path / "spans.csv"

    assert main([*UNIT, "--spans", str(table)]) == 0
    found = table.read_text().splitlines()
    assert found[:2] == ["rank,action,stage,kind,microbatch,start_s,end_s", "0,0F0,0,F,0,0.0,1.0"]

    arguments = ["all", "--ranks", "2", "--microbatches", "2", "--spans", str(table)]
    assert main(arguments) == 2
    assert "--spans is of one schedule" in capsys.readouterr().err


def test_page_and_trace(capsys, tmp_path):
    """An HTML page and a Chrome trace, with every action and every figure."""
    html, trace = tmp_path / "a.html", tmp_path / "a.json"

    assert main([*UNIT, "--html", str(html), "--trace", str(trace)]) == 0
    capsys.readouterr()

    page = html.read_text(encoding="utf-8")
    assert page.count('class="box ') == 64
    for text in ("33.0 s <small>bubble ratio 27.3 %", "Activations held", "peak 4", "lower bound"):
        assert text in page
    events = json.loads(trace.read_text())["traceEvents"]
    assert sum(event["ph"] == "X" for event in events) == 64
    held = [e["args"]["held"] for e in events if e["name"] == "activations of rank 0"]
    assert max(held) == 4


@pytest.mark.parametrize("schedule", ["1f1b", "all"])
def test_actions_that_take_no_time(capsys, tmp_path, schedule):
    """There is nothing to draw, and nothing is divided by the length."""
    pictures = ["--svg", str(tmp_path / "a.svg"), "--html", str(tmp_path / "a.html")]
    argv = [schedule, "--ranks", "2", "--microbatches", "3", "--costs", "F=0,B=0", *pictures]

    assert main(argv) == 0
    assert "1f1b" in capsys.readouterr().out


def test_several_stages_per_rank(capsys):
    """Costs are of each stage; the text names stages."""
    argv = ["interleaved", "--ranks", "2", "--microbatches", "4", "--stages-per-rank", "3"]
    found = show_json(capsys, *argv)

    assert found["num_stages"] == 6
    assert found["placement"] == [0, 1, 0, 1, 0, 1]
    assert found["makespan_s"] == 3 * (3 * 4 + 1)
    assert main(argv) == 0
    assert capsys.readouterr().out.startswith("interleaved · 2 ranks · 6 stages · 4 micro-batches")


def test_two_copies_of_the_model(capsys):
    """Both ways of the placement, and how often weights are held."""
    argv = ["chimera", "--ranks", "4", "--microbatches", "4"]
    found = show_json(capsys, *argv)

    assert (found["placement"], found["replicas"]) == ([0, 1, 2, 3], [[3, 2, 1, 0]])
    assert found["weight_copies"] == 2
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert out.startswith("chimera · 4 ranks · 4 micro-batches · 2 copies of the model\n")
    assert "weights       2\N{MULTIPLICATION SIGN}, the model, over all ranks; gradients are" in out


def test_actions_that_overlap(capsys, tmp_path):
    """Rank and slot of each that runs with the next in JSON, together in a cell of the CSV."""
    csv = tmp_path / "a.csv"
    argv = ["dualpipe-v", "--ranks", "2", "--microbatches", "4", "--csv", str(csv)]

    found = show_json(capsys, *argv)

    assert found["overlaps"][0] == [0, 7]
    assert found["actions"][0][7:9] == ["0F3", "3B1"]
    assert "(0F3;3B1)OVERLAP_F_B" in csv.read_text()
    assert show_json(capsys, str(csv))["actions"] == found["actions"]


def test_a_cap_that_holds(capsys):
    """The bound is that of schedules which hold no more."""
    found = show_json(capsys, *UNIT, "--memory-cap", "4")
    assert found["peak_activations"] == [4, 3, 2, 1]

    lower = show_json(capsys, "naive", *UNIT[1:], "--memory-cap", "1")
    assert lower["lower_bound_s"] > found["lower_bound_s"]
    assert main([*UNIT, "--memory-cap", "4"]) == 0
    assert "for any schedule on this placement within 4 activations;" in capsys.readouterr().out


def test_bytes(capsys, tmp_path):
    """Where the costs have bytes, what each rank holds at most is in bytes too."""
    file = tmp_path / "costs.json"
    costs = {key: 1 for key in ("forward_s", "backward_input_s", "backward_weight_s")}
    file.write_text(json.dumps({**costs, "activation_bytes": 2048}))
    argv = [*UNIT[:5], "--costs", str(file)]

    assert show_json(capsys, *argv)["peak_bytes"] == [8192, 6144, 4096, 2048]
    assert main(argv) == 0
    what = "of activations and pending weight gradients at most; per rank: 8.00KiB 6.00KiB"
    line = f"memory        8.00 KiB, {what}"
    assert line in capsys.readouterr().out


@pytest.mark.parametrize("name", schedule_names())
@pytest.mark.parametrize("objective", ["global", "rank"])
def test_the_bound_is_below(capsys, name, objective):
    """Of every schedule, copies, overlaps and forwards alone included."""
    argv = [name, "--ranks", "4", "--microbatches", "8", "--objective", objective]
    found = show_json(capsys, *argv, "--transfer", "0.3")

    assert found["lower_bound_s"] > 0
    assert found["above_bound"] >= -1e-12


@pytest.mark.parametrize("pair", ["1", "2", "3", "4", "5"])
def test_the_bound_is_below_where_pairs_are_short(capsys, pair):
    """Down to the forward alone; the text says by how much, and would say if it were not so."""
    argv = ["dualpipe", "--ranks", "2", "--microbatches", "8", "--costs", f"F=1,I=3,W=0,FB={pair}"]

    found = show_json(capsys, *argv)

    assert found["above_bound"] >= -1e-12
    assert main(argv) == 0
    assert f"makespan within {100 * found['above_bound']:.1f} % of it" in capsys.readouterr().out


def test_the_text_does_not_hide_a_bound_that_is_none():
    """A length below what is said to be the least is shown as that; rounding is not."""
    program = build_schedule("gpipe", num_ranks=2, num_microbatches=3)
    shown = show_order(program, CostModel.uniform(2), "global")

    wrong = replace(shown, lower_bound_s=2 * shown.span_s)
    rounded = replace(shown, lower_bound_s=shown.span_s * (1 + 1e-15))

    assert "within -50.0 % of the lower bound" in wrong.figures
    assert "makespan within -50.0 % of it" in wrong.facts()[2][2]
    assert "within 0.0 % of the lower bound" in rounded.figures


def test_the_longest_rank_against_its_bound(capsys):
    """No rank can be quicker than its own work."""
    found = show_json(capsys, *UNIT, "--objective", "rank")

    assert found["objective"] == "rank"
    assert 24.0 <= found["lower_bound_s"] <= found["rank_span_s"]
    assert found["above_bound"] == found["rank_span_s"] / found["lower_bound_s"] - 1


def test_schedule_and_program_files(capsys, tmp_path):
    """Both text forms are shown; the counts may be left out."""
    schedule = build_schedule("gpipe", num_ranks=2, num_microbatches=3)
    as_schedule, as_program = tmp_path / "s.txt", tmp_path / "p.txt"
    as_schedule.write_text(format_schedule(schedule))
    as_program.write_text(format_program(lower(schedule)))

    assert show_json(capsys, str(as_schedule)) == show_json(capsys, str(as_program))


def test_costs_from_a_file(capsys, tmp_path):
    """Per-stage lists."""
    costs = tmp_path / "costs.json"
    costs.write_text('{"forward_s": [1, 2], "backward_input_s": 1, "backward_weight_s": 1}')

    found = show_json(capsys, "1f1b", "--ranks", "2", "--microbatches", "1", "--costs", str(costs))

    assert found["makespan_s"] == 7.0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["1f1b"], "schedule '1f1b' needs --ranks and --microbatches"),
        (["1f2b", "--ranks", "2"], "unknown schedule '1f2b'; known: naive, gpipe, 1f1b, "),
        (["1f1b", "--ranks", "0", "--microbatches", "1"], "--ranks must be 1 or more, got 0"),
        ([*UNIT, "--costs", "F=1"], "costs: I is missing"),
        ([*UNIT, "--costs", "nowhere.json"], "nowhere.json"),
        ([*UNIT, "--columns", "3"], "--columns is 3, which is too few"),
        ([*UNIT, "--memory-cap", "3"], "1f1b does not keep within the cap: M001 rank 0 slot 3"),
        ([*UNIT, "--memory-cap", "0"], "--memory-cap must be 1 or more, got 0"),
        (
            [*UNIT, "--stages-per-rank", "2"],
            "schedule '1f1b' takes no --stages-per-rank; those that do: interleaved, ",
        ),
        ([*UNIT, "--stages-per-rank", "0"], "--stages-per-rank must be 1 or more, got 0"),
        ([*UNIT, "--objective", "best"], "best"),
        ([*UNIT, "--svg", "/nowhere/a.svg"], "/nowhere/a.svg"),
        (["--ranks", "2"], "SCHEDULE"),
        ([*UNIT, "--format", "xml"], "xml"),
        ([*UNIT, "--frmat", "json"], "--frmat"),
    ],
)
def test_wrong_arguments(capsys, argv, message):
    """A message on stderr, nothing on stdout, exit status 2."""
    assert main(argv) == 2

    out = capsys.readouterr()
    assert message in out.err
    assert out.out == ""


def test_an_invalid_schedule(capsys, tmp_path):
    """All findings are shown."""
    file = tmp_path / "bad.csv"
    file.write_text("0F0,0F0,0B0\n1F0\n")

    assert main([str(file)]) == 2

    assert "schedule has 2 problem(s)" in capsys.readouterr().err


def test_counts_that_do_not_agree_with_the_file(capsys, tmp_path):
    """A file says how many ranks it has."""
    file = tmp_path / "one.csv"
    file.write_text("0F0,0B0\n")

    assert main([str(file), "--ranks", "3"]) == 2

    assert "--ranks is 3, but" in capsys.readouterr().err


def test_a_file_says_where_its_stages_are(capsys, tmp_path):
    """So they are not asked for."""
    file = tmp_path / "one.csv"
    file.write_text("0F0,0B0\n")

    assert main([str(file), "--stages-per-rank", "2"]) == 2

    assert "--stages-per-rank goes with a schedule's name" in capsys.readouterr().err


def test_help(capsys):
    """Examples are part of it, and every schedule with what it is."""
    assert main(["--help"]) == 0

    out = capsys.readouterr().out
    assert "intandem show 1f1b --ranks 4 --microbatches 8" in out
    for family in FAMILIES:
        assert re.search(rf"^  {family.name} +\S.*", out, re.M)
    assert "1f1b             1F1B (PipeDream-Flush)" in out
