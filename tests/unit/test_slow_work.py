"""Lines that say what takes a while: on a terminal, once it has, and gone at the end."""

import io
import threading

import pytest

from intandem.cli import cmd_show, slow_work
from intandem.cli.rehearse_progress import rehearsing
from intandem.cli.slow_work import ProgressLine, shown_if_slow
from intandem.rehearsal import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def a_terminal(monkeypatch):
    """Standard error, where lines are shown at once."""
    stream = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(slow_work, "QUIET_S", 0)
    return stream


def wait_for_line():
    for timer in [thread for thread in threading.enumerate() if hasattr(thread, "interval")]:
        timer.join()


def test_what_is_done_and_for_how_long(monkeypatch):
    terminal = a_terminal(monkeypatch)
    line = ProgressLine("one thing")
    with shown_if_slow(line):
        wait_for_line()
        assert "one thing" in terminal.getvalue()
        assert "0:00:00" in terminal.getvalue()
        line.update("another")
    assert "another" in terminal.getvalue()


def test_a_line_that_was_stopped_is_not_shown(monkeypatch):
    terminal = a_terminal(monkeypatch)
    line = ProgressLine("one thing")
    line.stop()
    line.start()
    assert terminal.getvalue() == ""


def test_steps_of_rehearsals(monkeypatch):
    terminal = a_terminal(monkeypatch)
    with rehearsing(["gpipe", "1f1b"], 7) as tell:
        wait_for_line()
        assert "starting the ranks" in terminal.getvalue()
        tell(Progress(1, 2))
    assert "2 of 2: 1f1b, step 3 of 7" in terminal.getvalue()


@pytest.mark.parametrize("schedule", ["1f1b", "all"])
def test_show(capsys, monkeypatch, schedule):
    """One schedule or all of them."""
    terminal = a_terminal(monkeypatch)
    read_costs = cmd_show.read_costs

    def slowly(*options):
        wait_for_line()
        assert "building, simulating, drawing" in terminal.getvalue()
        return read_costs(*options)

    monkeypatch.setattr(cmd_show, "read_costs", slowly)
    assert cmd_show.main([schedule, "--ranks", "2", "--microbatches", "2"]) == 0
    assert "makespan" in capsys.readouterr().out
