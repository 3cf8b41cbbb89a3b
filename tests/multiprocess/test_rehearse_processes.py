"""A rehearsal on processes: what ran, and what was sent."""

import json
from dataclasses import replace

import pytest

from intandem.cli.cmd_rehearse import main
from intandem.costs import CostModel
from intandem.errors import RunError
from intandem.lowering import lower
from intandem.rehearsal import Part, TransportKind
from intandem.rehearsal.request import Request
from intandem.rehearsal.running import run_all
from intandem.schedules import build_schedule


@pytest.mark.parametrize("transport", ["shared", "gloo"])
def test_processes_run_what_was_lowered(transport, capsys):
    """Two processes run both schedules in order, and send messages of the size asked for."""
    sizes = ["--ranks", "2", "--microbatches", "4", "--boundary-bytes", "4096"]
    short = ["--costs", "F=0.0005,I=0.0003,W=0.0002", "--steps", "2"]
    argv = ["1f1b", "interleaved", *sizes, *short, "--transport", transport, "--format", "json"]
    argv.append("--overlap")

    assert main(argv) == 0

    found = json.loads(capsys.readouterr().out)
    for one, name in zip(found, ["1f1b", "interleaved"], strict=True):
        schedule = build_schedule(name, num_ranks=2, num_microbatches=4)
        program = lower(schedule)
        num_messages = sum(str(i).startswith("send") for row in program.instructions for i in row)
        assert (one["schedule"], one["transport"], one["num_ranks"]) == (name, transport, 2)
        assert one["measured_actions"] == [[str(a) for a in row] for row in schedule.actions]
        assert one["num_messages"] == num_messages
        assert one["message_bytes"] == 4096 * num_messages
        assert len(one["steps_s"]) == 2
        assert one["ratio"] == one["measured_s"] / one["makespan_s"]
        assert one["overlapping"]["measured_step_s"] > 0
        assert {(t["num_bytes"], *t["ranks"]) for t in one["transfers"]} == {
            (0, 0, 1),
            (4096, 0, 1),
        }


def test_where_no_memory_can_be_shared_another_transport_is_named(tmp_path, monkeypatch, capfd):
    """Measured over Gloo, the figures would not be what they say. The path is too long to meet."""
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setenv("TMPDIR", str(deep))
    program = lower(build_schedule("1f1b", num_ranks=2, num_microbatches=2))
    request = Request((Part(program, CostModel.uniform(2, 1e-4, 1e-4, 1e-4)),), 1)

    with pytest.raises(RunError, match=r"cannot share memory.*--transport gloo"):
        run_all(request, TransportKind.SHARED, lambda _: None)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("kind", [TransportKind.SHARED, TransportKind.GLOO])
def test_a_process_that_fails_is_named(kind, capfd):
    """A message that is not the one expected ends all processes, and says whose and where."""
    program = lower(build_schedule("1f1b", num_ranks=2, num_microbatches=2))
    forward_0, send_0, forward_1, send_1, *rest = program.instructions[0]
    rows = ((forward_0, send_1, forward_1, send_0, *rest), program.instructions[1])
    costs = CostModel.uniform(2, 1e-4, 1e-4, 1e-4)
    request = Request((Part(replace(program, instructions=rows), costs),), 1)

    where = r"at step 0 stage 1 micro-batch 0 action recv:0F0>1@0"
    with pytest.raises(RunError, match=f"^rank 1 raised ContractError: .*{where}"):
        run_all(request, kind, lambda _: None)
    assert "PeerFailureError" not in capfd.readouterr().err
