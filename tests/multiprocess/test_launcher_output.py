"""Lines of several ranks in one file or pipe, and on a terminal."""

import os
import pty
import subprocess
import threading

from fault_runs import HANG_S, command

LINES = """
import os, sys, time
for number in range(150):
    for piece in (os.environ["RANK"], " says", " " + "x" * 40, "\\n"):
        sys.stdout.write(piece)
        sys.stdout.flush()
        time.sleep(0.0003)
"""
STATES = """
import os, sys
for state in ("1 %", "50 %", "100 %"):
    if os.environ["RANK"] == "0":
        sys.stdout.write("\\r" + state)
        sys.stdout.flush()
sys.stdout.write(f" tty {os.isatty(1)} end")
"""


def script(tmp_path, text):
    path = tmp_path / "script.py"
    path.write_text(text)
    return str(path)


def test_lines_are_not_cut(tmp_path):
    """Every line of every rank arrives whole where the output is a pipe."""
    line = command("intandem", 3, script(tmp_path, LINES))
    shown = subprocess.run(line, capture_output=True, text=True, timeout=HANG_S, check=True).stdout
    expected = [
        f"{mark}{rank} says {'x' * 40}" for rank, mark in enumerate(("", "[rank 1] ", "[rank 2] "))
    ]
    assert sorted(shown.splitlines()) == sorted(expected * 150)


def test_a_line_without_an_end_is_last(tmp_path):
    """Rank 0's bytes stay as they are; nothing of others is put into its last line."""
    line = command("intandem", 2, script(tmp_path, STATES))
    shown = subprocess.run(line, capture_output=True, timeout=HANG_S, check=True).stdout
    own, other = b"\r1 %\r50 %\r100 % tty False end", b"[rank 1]  tty False end\n"
    assert shown.replace(other, b"") == own
    assert shown.endswith(b"100 % tty False end")


def test_progress_in_a_pipe_is_passed_on_as_it_comes(tmp_path):
    """A progress bar without a newline is not held back until its end."""
    text = STATES.replace("sys.stdout.write(f", "sys.stdin.readline(); sys.stdout.write(f")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command("intandem", 2, script(tmp_path, text)), **pipes) as process:
        stop = threading.Timer(HANG_S, process.kill)
        stop.start()
        try:
            seen = b""
            while b"\r50 %\r" not in seen and (data := os.read(process.stdout.fileno(), 1000)):
                seen += data
            assert b"\r50 %\r" in seen
            process.stdin.write(b"\n")
            process.stdin.flush()
            assert process.wait(HANG_S) == 0
        finally:
            stop.cancel()
            process.kill()


def test_a_terminal_is_rank_0s_own(tmp_path):
    """On a terminal rank 0 writes to it directly, and knows that it is one."""
    ours, theirs = pty.openpty()
    line = command("intandem", 2, script(tmp_path, STATES))
    with subprocess.Popen(line, stdout=theirs, stdin=subprocess.DEVNULL) as process:
        os.close(theirs)
        shown = b""
        while data := _read(ours):
            shown += data
        assert process.wait(HANG_S) == 0
    os.close(ours)
    assert b"\r1 %\r50 %\r100 % tty True end" in shown
    assert b"[rank 1]  tty False end" in shown


def _read(terminal):
    try:
        return os.read(terminal, 1000)
    except OSError:  # how Linux says that the other side is closed
        return b""


def test_one_rank_goes_straight_out():
    """With nobody to mix with there is no pipe."""
    from intandem.runtime.launcher.launch import Show, _piped

    assert _piped(0, 1, Show.PREFIX) == set()
    assert _piped(1, 2, Show.PLAIN) == set()
    assert _piped(1, 2, Show.PREFIX) == {1, 2}
