"""``intandem show`` on a given machine, and of several steps."""

import json

import pytest
from hypothesis import given, settings
from machine_samples import cases

from intandem.cli.cmd_show import main
from intandem.cli.figures import show_order
from intandem.costs import CostModel
from intandem.machine import machine_from_json
from intandem.schedules import build_schedule, schedule_names
from intandem.simulator import simulate, simulate_steps

ONE_F = ["1f1b", "--ranks", "4", "--microbatches", "8"]
NODES = {
    "latency_s": 0.25,
    "bandwidth_bytes_per_s": 1,
    "links": [{"from": a, "to": b, "latency_s": 1.5} for a, b in ((1, 2), (2, 1))],
    "shared_wires": [[[0, 1], [1, 2], [2, 3], [3, 2], [2, 1], [1, 0]]],
    "transfers_overlap": False,
}


@pytest.fixture
def machine(tmp_path):
    """Writes a machine's file."""

    def write(content):
        file = tmp_path / "machine.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(file)

    return write


@pytest.fixture
def with_bytes(tmp_path):
    """A file of costs with messages of one byte."""
    file = tmp_path / "costs.json"
    seconds = {key: 1 for key in ("forward_s", "backward_input_s", "backward_weight_s")}
    file.write_text(json.dumps({**seconds, "boundary_bytes": 1, "activation_bytes": 5}))
    return ["--costs", str(file)]


def show_json(capsys, *argv):
    assert main([*argv, "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("left_out", [None, "links", "shared_wires", "transfers_overlap"])
def test_as_the_simulator_has_it(capsys, machine, with_bytes, left_out):
    """Links of pairs, shared wires, transfers that hold ranks: each makes a difference."""
    content = {key: value for key, value in NODES.items() if key != left_out}
    costs = CostModel(*[(1.0,) * 4] * 3, boundary_bytes=(1,) * 3)
    schedule = build_schedule("1f1b", num_ranks=4, num_microbatches=8)
    expected = simulate(schedule, costs, machine_from_json(json.dumps(content), num_ranks=4))

    found = show_json(capsys, *ONE_F, *with_bytes, "--machine", machine(content))

    assert found["makespan_s"] == expected.makespan_s
    if left_out is not None:
        whole = show_json(capsys, *ONE_F, *with_bytes, "--machine", machine(NODES))
        assert whole["makespan_s"] > found["makespan_s"]


def test_links_count_in_place_of_those_of_the_costs(capsys, machine, tmp_path):
    """Of the length, the bound and the memory of messages."""
    file = tmp_path / "costs.json"
    seconds = {key: 1 for key in ("forward_s", "backward_input_s", "backward_weight_s")}
    file.write_text(json.dumps({**seconds, "latency_s": 9}))
    argv = [*ONE_F, "--costs", str(file)]

    assert show_json(capsys, *argv, "--machine", machine({}))["makespan_s"] == 33
    assert show_json(capsys, *argv, "--machine", machine({}))["lower_bound_s"] == 27
    assert show_json(capsys, *argv)["lower_bound_s"] > 2 * 3 * 9


def test_memory_of_messages_is_that_on_the_machine(capsys, machine, with_bytes):
    """A message that takes long to leave is held for long."""
    slow = {"bandwidth_bytes_per_s": 0.1}

    fast = show_json(capsys, *ONE_F, *with_bytes, "--machine", machine({}))
    late = show_json(capsys, *ONE_F, *with_bytes, "--machine", machine(slow))

    assert max(late["peak_bytes"]) > max(fast["peak_bytes"])
    assert late["peak_held_bytes"] == fast["peak_held_bytes"]


@given(cases())
@settings(max_examples=100, deadline=None)
def test_the_bound_is_below_on_any_machine(case):
    """That of the fastest link, whatever the others are."""
    schedule, costs, machine = case

    for objective in ("global", "rank"):
        shown = show_order(schedule, costs, objective, machine=machine)
        assert shown.lower_bound_s <= shown.span_s * (1 + 1e-12)


def test_the_bound_of_the_fastest_link(capsys, machine):
    """Every pair has a link of its own: the default is none of them."""
    links = [{"from": a, "to": b, "latency_s": 2 + a} for a, b in ((0, 1), (1, 0))]
    file = machine({"latency_s": 7, "links": links})
    argv = ["1f1b", "--ranks", "2", "--microbatches", "1", "--machine", file]

    found = show_json(capsys, *argv)

    assert found["makespan_s"] == 1 + 2 + 3 + 3 + 2
    assert found["lower_bound_s"] == 1 + 2 + 2 + 2 + 1 + 1


def test_all_on_a_machine(capsys, machine, with_bytes):
    """Every schedule that fits, on the same one."""
    argv = ["--ranks", "2", "--microbatches", "4", "--machine", machine({"latency_s": 2})]

    rows = {row["schedule"]: row for row in show_json(capsys, "all", *argv)}

    assert rows["1f1b"]["makespan_s"] == show_json(capsys, "1f1b", *argv)["makespan_s"] > 15
    assert {"dualpipe", "interleaved"} <= set(rows)


def test_steps(capsys):
    """What a schedule gains that needs no barrier; the figures are the simulator's."""
    argv = ["zb-2p", "--ranks", "4", "--microbatches", "8", "--steps", "6"]
    schedule = build_schedule("zb-2p", num_ranks=4, num_microbatches=8)
    expected = simulate_steps(schedule, CostModel.uniform(4), num_steps=6)

    found = show_json(capsys, *argv)["steps"]

    assert found == {
        "num_steps": 6,
        "makespan_s": expected.makespan_s,
        "barrier_makespan_s": 6 * 27.0,
        "steady_step_s": 24.0,
        "barrier_step_s": 27.0,
        "period": 1,
    }
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "steps         147 s, for 6, no barrier between them; 162 s with one" in lines
    assert "steady step   24.0 s, each, once steps repeat; 27.0 s with a barrier" in lines


def test_steps_on_a_machine(capsys, machine):
    """Its links, and its reductions of what is held twice."""
    argv = ["dualpipe", "--ranks", "2", "--microbatches", "4", "--steps", "3"]

    near = show_json(capsys, *argv)["steps"]
    far = show_json(capsys, *argv, "--machine", machine({"latency_s": 2}))["steps"]

    assert far["barrier_step_s"] > near["barrier_step_s"]
    assert far["makespan_s"] <= far["barrier_makespan_s"] == 3 * far["barrier_step_s"]


def test_one_step(capsys):
    """Has nothing to repeat."""
    assert main([*ONE_F, "--steps", "1"]) == 0
    out = capsys.readouterr().out
    assert "steps         33.0 s, for 1, no barrier between them; 33.0 s with one\n" in out
    assert "steady step" not in out


@pytest.mark.parametrize("name", schedule_names())
def test_steps_of_every_schedule(capsys, name):
    """Steps take no longer without a barrier."""
    found = show_json(capsys, name, "--ranks", "2", "--microbatches", "4", "--steps", "4")["steps"]

    assert found["steady_step_s"] <= found["barrier_step_s"] * (1 + 1e-9)


@pytest.mark.parametrize(
    ("content", "argv", "message"),
    [
        (
            {"links": [{"from": 3, "to": 4}]},
            [],
            "machine.json, on 4 ranks: links has the pair (3, 4); expected two different ranks of",
        ),
        (
            {"shared_wires": [[[0, 4]]]},
            [],
            "on 4 ranks: shared_wires has the pair (0, 4); expected two different ranks of 0..3",
        ),
        ({"memory_bytes": [1, 2]}, [], "memory_bytes is (1, 2); expected 4 sizes or none"),
        ({"speed": 1}, [], "machine.json, on 4 ranks: machine: "),
        ("{", [], "machine.json, on 4 ranks: machine"),
        ({}, ["--transfer", "1"], "--transfer does not go with --machine; put latency_s into the"),
        ({}, ["--machine", "none.json"], "--machine none.json: expected the name of a JSON file"),
        ({}, ["--steps", "0"], "--steps must be 1 or more, got 0"),
    ],
)
def test_what_is_refused(capsys, machine, content, argv, message):
    """Names the file, the number of ranks and what is wrong."""
    assert main([*ONE_F, "--machine", machine(content), *argv]) == 2
    assert message in capsys.readouterr().err


def test_steps_of_all_are_refused(capsys):
    """There is one table, of one step."""
    assert main(["all", "--ranks", "2", "--microbatches", "4", "--steps", "3"]) == 2
    assert "--steps is of one schedule; name it in place of all" in capsys.readouterr().err
