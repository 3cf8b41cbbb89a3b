"""``intandem rehearse``: its table, its JSON, and what it says of what it cannot do."""

import io
import json
import re

import pytest

from intandem.cli.cmd_rehearse import main
from intandem.ir import format_compute_csv, format_program, format_schedule
from intandem.lowering import lower
from intandem.schedules import build_schedule

SHORT = ["--costs", "F=0.0002,I=0.0001,W=0.0001", "--steps", "1"]
SIZES = ["--ranks", "2", "--microbatches", "4"]
SCHEDULE = build_schedule("1f1b", num_ranks=2, num_microbatches=3)


def rehearse_json(capsys, *argv):
    assert main([*argv, *SHORT, "--format", "json"]) == 0
    out = capsys.readouterr()
    assert out.err == ""
    return json.loads(out.out)


def test_json(capsys):
    """What show says of the simulated step, and what happened."""
    found = rehearse_json(capsys, "1f1b", *SIZES, "--boundary-bytes", "300")

    expected = {
        "schedule": "1f1b",
        "num_ranks": 2,
        "num_microbatches": 4,
        "num_stages": 2,
        "placement": [0, 1],
        "peak_activations": [2, 1],
        "transport": "local",
        "num_messages": 8,
        "message_bytes": 2400,
        "num_warmup": 2,
    }
    assert {key: found[key] for key in expected} == expected
    assert found["actions"] == found["measured_actions"]
    assert found["measured_s"] == found["steps_s"][0] > 0
    assert found["ratio"] == found["measured_s"] / found["makespan_s"]
    assert found["makespan_s"] >= 5 * 4e-4
    for key in ("idle_s", "measured_idle_s"):
        assert len(found[key]) == 2
    for key in ("bubble_ratio", "measured_bubble_ratio"):
        assert 0 <= found[key] < 1
    assert found["overslept"] >= 0
    assert found["overlapping"] is None
    assert [(one["ranks"], one["num_bytes"]) for one in found["transfers"]] == [
        ([0, 1], 0),
        ([0, 1], 300),
    ]


def test_steps_that_overlap(capsys):
    """Figures of steps without a barrier, in JSON and as a table of their own."""
    found = rehearse_json(capsys, "zb-2p", *SIZES, "--overlap")
    overlapping = found["overlapping"]
    assert overlapping["simulated_gain"] == pytest.approx(
        found["makespan_s"] / overlapping["simulated_step_s"]
    )
    assert overlapping["measured_gain"] == found["measured_s"] / overlapping["measured_step_s"]
    assert overlapping["ratio"] > 0

    assert main(["zb-2p", *SIZES, *SHORT, "--overlap", "--columns", "80"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"no barrier +simulated +measured +measured / +gain +gain\n", text)
    assert "each rank begins a step when it has done the last" in " ".join(text.split())


def test_table(capsys):
    """A row per schedule, idle times per rank, and what the figures mean."""
    names = ["gpipe", "interleaved", "zb-v"]
    assert main([*names, *SIZES, *SHORT, "--stages-per-rank", "2", "--columns", "80"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "rehearsed: 2 ranks (local) · 4 micro-batches"
    rows = [line.split() for line in lines[4:7]]
    assert [(row[0], row[1]) for row in rows] == [
        ("gpipe", "2"),
        ("interleaved", "4"),
        ("zb-v", "4"),
    ]
    assert [line.partition(":")[0] for line in lines[8:14]] == [
        f"{name} idle, {which}" for name in names for which in ("simulated", "measured")
    ]
    note = " ".join(lines[15:])
    assert note.startswith("simulated: with durations as asked for; messages as measured between")
    assert "measured: one step after 2 of warm-up." in note
    assert max(map(len, lines[15:])) <= 80


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".schedule", format_schedule(SCHEDULE)),
        (".program", format_program(lower(SCHEDULE))),
        (".csv", format_compute_csv(SCHEDULE)),
    ],
)
def test_files(capsys, tmp_path, suffix, text):
    """A schedule, a program or a compute order, with the ranks and micro-batches it has."""
    file = tmp_path / f"mine{suffix}"
    file.write_text(text)

    found = rehearse_json(capsys, str(file))

    assert (found["num_ranks"], found["num_microbatches"]) == (2, 3)
    assert found["measured_actions"] == [[str(a) for a in row] for row in SCHEDULE.actions]


@pytest.mark.parametrize("text", [format_schedule(SCHEDULE), format_program(lower(SCHEDULE))])
def test_standard_input(capsys, monkeypatch, text):
    """A schedule or program is read from standard input."""
    monkeypatch.setattr("sys.stdin", io.StringIO(text))

    assert rehearse_json(capsys, "-")["measured_actions"][1][:2] == ["1F0", "1B0"]


def test_costs_from_a_file(capsys, tmp_path):
    """Per-stage seconds and bytes; costs of links are not taken from it, but measured."""
    file = tmp_path / "costs.json"
    content = {
        "forward_s": [1e-4, 3e-4],
        "backward_input_s": 1e-4,
        "backward_weight_s": 1e-4,
        "boundary_bytes": [77],
        "latency_s": 1000,
    }
    file.write_text(json.dumps(content))
    argv = ["gpipe", *SIZES, "--costs", str(file), "--steps", "1", "--format", "json"]

    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)

    assert found["message_bytes"] == 77 * 8
    assert found["makespan_s"] < 1000
    assert found["ratio"] == found["measured_s"] / found["makespan_s"]


def test_several_schedules_share_a_model(capsys):
    """With several, costs are of a P-th of the model, whatever the stages of a schedule are."""
    one, two = rehearse_json(capsys, "1f1b", "zb-v", *SIZES)

    assert (one["num_stages"], two["num_stages"]) == (2, 4)
    busy_s = 2 * 4 * 4e-4
    for found in (one, two):
        grid_s = 2 * found["makespan_s"]
        assert (1 - found["bubble_ratio"]) * grid_s == pytest.approx(busy_s)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give at least one schedule, by name or as a file"),
        (["1f1b"], "schedule '1f1b' needs --ranks and --microbatches"),
        (["1f1b", "--ranks", "0"], "--ranks must be 1 or more, got 0"),
        (["1f1b", *SIZES, "--steps", "0"], "--steps must be 1 or more, got 0"),
        (["-", "-"], "- stands for standard input, which can be read once"),
        (
            ["1f1b", *SIZES, "--boundary-bytes", "-1"],
            "--boundary-bytes must be 0 or more, got -1",
        ),
        (["1f1b", *SIZES, "--costs", "F=1"], "costs: I is missing in 'F=1'; expected F with B, or"),
        (["1f1", *SIZES], "unknown schedule '1f1'"),
        (["zb-v", *SIZES, "--stages-per-rank", "3"], "schedule 'zb-v'"),
        (
            ["gpipe", *SIZES, "--memory-cap", "2"],
            "gpipe does not keep within the cap: M001 rank 0 slot 2",
        ),
    ],
)
def test_refusals(capsys, argv, message):
    """What is wrong is said in one sentence, with exit status 2, before anything runs."""
    assert main(argv) == 2

    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"intandem rehearse: {message}")
    assert err.count("\n") == 1


def test_ranks_that_differ(capsys, tmp_path):
    """Files of several numbers of ranks are not rehearsed together, nor against the options."""
    names = []
    for ranks in (2, 3):
        names.append(str(tmp_path / f"{ranks}.schedule"))
        schedule = build_schedule("1f1b", num_ranks=ranks, num_microbatches=4)
        (tmp_path / f"{ranks}.schedule").write_text(format_schedule(schedule))

    assert main(names) == 2
    assert capsys.readouterr().err == (
        "intandem rehearse: schedules of 2 and 3 ranks; rehearse them one by one\n"
    )
    assert main([names[0], "--ranks", "4"]) == 2
    assert "--ranks is 4, but" in capsys.readouterr().err


def test_sizes_of_standard_input(capsys, monkeypatch):
    """Options that contradict what is read are refused."""
    monkeypatch.setattr("sys.stdin", io.StringIO(format_schedule(SCHEDULE)))

    assert main(["-", "--microbatches", "4"]) == 2
    assert capsys.readouterr().err == (
        "intandem rehearse: --microbatches is 4, but standard input has 3; "
        "leave --microbatches out\n"
    )


def test_cap_of_standard_input(capsys, monkeypatch):
    """What is read keeps within the cap, or is not run."""
    monkeypatch.setattr("sys.stdin", io.StringIO(format_schedule(SCHEDULE)))

    assert main(["-", "--memory-cap", "1"]) == 2
    assert "1f1b does not keep within the cap" in capsys.readouterr().err


def test_bytes_of_a_file(capsys, tmp_path):
    """Bytes that are in the costs' file are not given a second time."""
    file = tmp_path / "costs.json"
    file.write_text('{"forward_s": 1, "backward_input_s": 1, "backward_weight_s": 1}')

    assert main(["1f1b", *SIZES, "--costs", str(file), "--boundary-bytes", "1"]) == 2
    assert "put boundary_bytes into the JSON file" in capsys.readouterr().err
