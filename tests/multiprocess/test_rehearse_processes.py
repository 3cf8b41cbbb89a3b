"""A rehearsal on processes, over Gloo: what ran, and what was sent."""

import json

from intandem.cli.cmd_rehearse import main
from intandem.lowering import lower
from intandem.schedules import build_schedule


def test_processes_run_what_was_lowered(capsys):
    """Two processes run both schedules in order, and send messages of the size asked for."""
    sizes = ["--ranks", "2", "--microbatches", "4", "--boundary-bytes", "4096"]
    short = ["--costs", "F=0.0005,I=0.0003,W=0.0002", "--steps", "2"]
    argv = ["1f1b", "interleaved", *sizes, *short, "--transport", "gloo", "--format", "json"]

    assert main(argv) == 0

    found = json.loads(capsys.readouterr().out)
    for one, name in zip(found, ["1f1b", "interleaved"], strict=True):
        schedule = build_schedule(name, num_ranks=2, num_microbatches=4)
        program = lower(schedule)
        num_messages = sum(str(i).startswith("send") for row in program.instructions for i in row)
        assert (one["schedule"], one["transport"], one["num_ranks"]) == (name, "gloo", 2)
        assert one["measured_actions"] == [[str(a) for a in row] for row in schedule.actions]
        assert one["num_messages"] == num_messages
        assert one["message_bytes"] == 4096 * num_messages
        assert len(one["steps_s"]) == 2
        assert one["ratio"] == one["measured_s"] / one["makespan_s"]
        assert {(t["num_bytes"], *t["ranks"]) for t in one["transfers"]} == {
            (0, 0, 1),
            (4096, 0, 1),
        }
