"""``intandem show all``: every schedule in one table and one picture."""

import json
import os
import re
import subprocess
import sys

import pytest

from intandem.cli.cmd_show import main
from intandem.schedules import schedule_names

SIZE = ["all", "--ranks", "4", "--microbatches", "8"]


def compared(capsys, *argv):
    assert main([*SIZE, *argv, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    fit = {item["schedule"]: item for item in found if "reason" not in item}
    return fit, {item["schedule"]: item["reason"] for item in found if "reason" in item}


def test_every_schedule_is_there_once(capsys):
    """Fitting or not; sorted by makespan."""
    fit, refused = compared(capsys)

    assert {*fit, *refused} == set(schedule_names())
    assert refused == {"forward-only": "runs forwards only, so there is nothing to compare"}
    makespans = [item["makespan_s"] for item in fit.values()]
    assert makespans == sorted(makespans)
    assert fit["1f1b"]["makespan_s"] == 33.0


def test_rows_are_of_the_same_work(capsys):
    """Busy time is the same for all, however many stages, copies and costs there are."""
    fit, _ = compared(capsys, "--costs", "F=1,I=1.25,W=0.5", "--stages-per-rank", "4")

    busy = [4 * item["makespan_s"] * (1 - item["bubble_ratio"]) for item in fit.values()]
    assert busy == pytest.approx([4 * 8 * 2.75] * len(fit))
    assert {item["num_stages"] for item in fit.values()} >= {4, 8, 16}


def test_lists_of_costs_are_cut_or_joined(capsys, tmp_path):
    """A file of eight stages serves schedules of four, eight and sixteen."""
    file = tmp_path / "costs.json"
    lists = {
        "forward_s": [1, 2, 1, 1, 1, 1, 1, 4],
        "backward_input_s": 1,
        "backward_weight_s": 1,
    }
    file.write_text(json.dumps(lists))

    fit, _ = compared(capsys, "--costs", str(file), "--stages-per-rank", "4")

    busy = [4 * item["makespan_s"] * (1 - item["bubble_ratio"]) for item in fit.values()]
    assert busy == pytest.approx([8 * (12 + 8 + 8)] * len(fit))


def test_a_cap_counts_parts_of_the_model(capsys):
    """What does not fit is listed with its reason; two stages per rank may hold twice as many."""
    fit, refused = compared(capsys, "--memory-cap", "4")

    assert max(max(item["peak_parts"]) for item in fit.values()) <= 4
    assert "over the cap: rank 0 slot 4, 0F4 makes 5 stage activations" in refused["gpipe"]
    assert max(fit["gis"]["peak_activations"]) == 8
    assert fit["gis"]["peak_parts"][0] == 4.0


def test_counts_that_some_do_not_take(capsys):
    """They are listed with what they want, and the others are compared."""
    fit, refused = compared(capsys, "--ranks", "3")

    assert {"1f1b", "gpipe"} <= fit.keys()
    assert "needs an even number of ranks, got 3" in refused["dualpipe"]
    assert all(reason and "\n" not in reason for reason in refused.values())


def test_longest_rank(capsys):
    """The other objective sorts by the other length."""
    fit, _ = compared(capsys, "--objective", "rank")

    spans = [item["rank_span_s"] for item in fit.values()]
    assert spans == sorted(spans)
    assert {item["objective"] for item in fit.values()} == {"rank"}


def test_text(capsys):
    """A picture on one scale, the table, what it means, and what did not fit."""
    assert main([*SIZE, "--columns", "100"]) == 0

    out = capsys.readouterr().out
    assert out.startswith("4 ranks · 8 micro-batches\n")
    assert max(map(len, out.partition("do not fit:")[0].splitlines())) <= 100
    starts = [len(line) for line in out.splitlines() if line.startswith("rank 0  ")]
    assert len(starts) == len(schedule_names()) - 1
    assert len(set(starts)) == 1
    row = next(line for line in out.splitlines() if re.match(r"1f1b +1 ", line))
    assert row.split()[:10] == "1f1b 1 33.00 s 27.3 % 33.00 s 27.3 %".split()
    assert "do not fit:\n  forward-only  runs forwards only" in out


@pytest.mark.parametrize(
    ("objective", "kept", "left_out"),
    [("global", "makespan", "longest"), ("rank", "longest", "makespan")],
)
def test_a_narrow_terminal(capsys, objective, kept, left_out):
    """The table leaves out the length that was not asked for, and fits."""
    assert main([*SIZE, "--columns", "80", "--objective", objective]) == 0

    out = capsys.readouterr().out.partition("do not fit:")[0]
    assert max(map(len, out.splitlines())) <= 80
    head = out.partition("above")[0].splitlines()[-1] + out.partition("above\n")[2].splitlines()[0]
    assert kept in head
    assert left_out not in head


def test_pictures(capsys, tmp_path):
    """One SVG and one page of all; ids say whose box it is."""
    svg, html = tmp_path / "a.svg", tmp_path / "a.html"

    assert main([*SIZE, "--svg", str(svg), "--html", str(html)]) == 0
    capsys.readouterr()

    for file in (svg, html):
        text = file.read_text(encoding="utf-8")
        ids = re.findall(r' id="(\S+-0F0)"', text)
        assert len(ids) == len(set(ids)) == len(schedule_names()) - 1
        assert "1f1b-0F0" in ids
    page = html.read_text(encoding="utf-8")
    assert '<td class="text">1f1b</td><td>1</td><td>33.00 s</td>' in page
    assert "forward-only does not fit: runs forwards only" in page


def test_one_of_each(capsys, tmp_path):
    """Is not in the plural."""
    svg = tmp_path / "a.svg"
    size = ["all", "--ranks", "1", "--microbatches", "1", "--memory-cap", "1"]

    assert main([*size, "--svg", str(svg)]) == 0

    assert capsys.readouterr().out.startswith("1 rank · 1 micro-batch · at most 1 activation\n")
    assert "bubble ratio 0.0 % · 1 activation<" in svg.read_text(encoding="utf-8")


def test_a_reader_that_has_seen_enough():
    """``intandem show all ... | head`` says nothing on stderr."""
    call = "import sys; from intandem.cli.main import main; sys.exit(main())"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", call, *("show", *SIZE)],
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(writer)

    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["all", "--ranks", "4"], "comparing all schedules needs --ranks and --microbatches"),
        ([*SIZE, "--csv", "a.csv"], "--csv is of one schedule; name it in place of all"),
        ([*SIZE, "--trace", "a.json"], "--trace is of one schedule"),
        ([*SIZE, "--memory-cap", "0"], "--memory-cap must be 1 or more, got 0"),
        ([*SIZE, "--costs", "F=0,I=1"], "costs: W is missing"),
    ],
)
def test_refused(capsys, argv, message):
    """A message on stderr, nothing on stdout, exit status 2."""
    assert main(argv) == 2

    out = capsys.readouterr()
    assert message in out.err
    assert out.out == ""


def test_nothing_fits(capsys, tmp_path):
    """Every reason is given."""
    file = tmp_path / "costs.json"
    file.write_text('{"forward_s": [1, 2, 3], "backward_input_s": 1, "backward_weight_s": 1}')

    assert main([*SIZE, "--costs", str(file)]) == 2

    err = capsys.readouterr().err
    assert "no schedule fits 4 ranks and these limits:" in err
    assert "1f1b: costs of 3 stages are neither joined nor cut into 4 stages" in err
    assert err.count("\n") == 1 + len(schedule_names())
