"""``intandem run``: what ranks get, what is shown, what is refused, and that nothing stays."""

import ipaddress
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

import pytest
from fault_runs import HANG_S, command, processes_with

from intandem.cli import cmd_run
from intandem.runtime.launcher import launch
from intandem.runtime.launcher.launch import GRACE_S

SHOW = """
import json, os, sys
sys.stdout.write(json.dumps([sys.argv[1:], dict(os.environ)]) + "\\n")
"""
JOIN = """
import sys, time, torch.distributed as dist
dist.init_process_group("gloo")
sys.stdout.write(f"joined {dist.get_rank()}\\n")
time.sleep(60)
"""
SLEEP = 'import sys, time; sys.stdout.write("begun\\n"); sys.stdout.flush(); time.sleep(60)'
SAVE = f"""
import signal, sys, time
def end(*_):
    time.sleep({GRACE_S + 1.5})  # longer than those have who are victims of a failure
    sys.stdout.write("saved\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
sys.stdout.write("begun\\n"); sys.stdout.flush(); time.sleep(60)
"""


@pytest.fixture
def script(tmp_path):
    """Write a script and return its path."""

    def write(text):
        path = tmp_path / "script.py"
        path.write_text(text)
        return str(path)

    return write


def run(ranks, *script):
    """Run to the end; returns what ``subprocess`` does."""
    line = command("intandem", ranks, *script)
    return subprocess.run(line, capture_output=True, text=True, timeout=HANG_S, check=False)


@contextmanager
def running(ranks, *script, until, times):
    """Start and wait until ``until`` has been printed ``times`` times."""
    line = command("intandem", ranks, *script)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(line, text=True, **pipes) as process:
        try:
            seen = 0
            while seen < times:
                seen += until in process.stdout.readline()
            yield process
        finally:
            process.kill()


def gone(token, within_s=10):
    """Whether every process with ``token`` in its arguments is gone in time."""
    end_s = time.monotonic() + within_s
    while processes_with(token):
        if time.monotonic() > end_s:
            return False
        time.sleep(0.02)
    return True


def test_ranks_get_arguments_and_variables(script):
    """What follows the script reaches it unchanged; each rank knows its place."""
    done = run(2, script(SHOW), "--ranks", "7", "-m", "--", "a b")

    assert done.returncode == 0, done.stderr
    lines = sorted(line.removeprefix("[rank 1] ") for line in done.stdout.splitlines())
    shown = sorted((json.loads(line) for line in lines), key=lambda pair: pair[1]["RANK"])
    assert [arguments for arguments, _ in shown] == [["--ranks", "7", "-m", "--", "a b"]] * 2
    for rank, (_, env) in enumerate(shown):
        expected = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "GLOO_SOCKET_IFNAME": "lo",
            "PYTHONUNBUFFERED": "1",
        }
        assert {name: env[name] for name in expected} == expected
        assert int(env["OMP_NUM_THREADS"]) >= 1


def test_lines_of_other_ranks_are_marked(script):
    """Rank 0's output is untouched; of the others' progress bars the last state is shown."""
    text = "import os, sys; sys.stdout.write(os.environ['RANK'] + 'a\\rb\\rc\\r\\nlast\\n')"
    line = command("intandem", 2, script(text))

    shown = subprocess.run(line, capture_output=True, timeout=HANG_S, check=True).stdout

    assert b"0a\rb\rc\r\nlast\n" in shown
    assert b"[rank 1] c\n[rank 1] last\n" in shown
    assert len(shown) == len(b"0a\rb\rc\r\nlast\n[rank 1] c\n[rank 1] last\n")


def test_module(tmp_path, monkeypatch):
    """``-m`` runs a module, and the rest is its own."""
    (tmp_path / "somewhere.py").write_text(SHOW)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    line = [*command("intandem", 1)[:-2], "--ranks=1", "-m", "somewhere", "--x", "1"]

    done = subprocess.run(line, capture_output=True, text=True, timeout=HANG_S, check=False)

    assert json.loads(done.stdout)[0] == ["--x", "1"], done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ranks", "0", __file__], "--ranks must be from 1 to 256, got 0"),
        (["--ranks", "257", __file__], "--ranks must be from 1 to 256, got 257"),
        (["--ranks", "2"], "give a SCRIPT"),
        (["--ranks", "2", "-m"], "give a module after -m"),
        ([__file__], "the following arguments are required: --ranks"),
        (["--rank", "2", __file__], "the following arguments are required: --ranks"),
    ],
)
def test_bad_arguments_are_refused(arguments, message, capsys):
    """Exit status 2, and a line that says what is wrong."""
    with pytest.raises(SystemExit) as refused:
        cmd_run.main(arguments)

    assert refused.value.code == 2
    assert message in capsys.readouterr().err


def test_missing_script_is_refused():
    """The name is in the message; nothing is started."""
    with pytest.raises(FileNotFoundError, match=r"no such script: absent\.py"):
        cmd_run.main(["--ranks", "2", "absent.py"])


def test_command_does_not_import_torch():
    """Ranks are started before torch is imported: the launcher adds nothing to their start."""
    code = "import sys, intandem.cli.cmd_run; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_launch_is_a_function(script, capfd):
    """The same from Python: returns the exit code."""
    code = launch(script("import sys; sys.exit(5)"), ranks=1)

    assert code == 5
    capfd.readouterr()


def test_one_rank_that_fails_ends_all(script):
    """A script without a process group too: its exit code, the others ended, one line why."""
    token = uuid.uuid4().hex
    text = "import os, sys, time\nif os.environ['RANK'] == '1': sys.exit(7)\ntime.sleep(60)"

    done = run(3, script(text), token)

    assert done.returncode == 7
    said = "intandem run: rank 1 ended with exit code 7, before its first step; exit code 7"
    assert said in done.stderr.splitlines()
    assert processes_with(token) == []


def test_stubborn_ranks_and_what_they_started_are_killed(script):
    """A rank that ignores SIGTERM and its own child process are gone 3 s after the failure."""
    token = uuid.uuid4().hex
    text = f"""
import os, signal, subprocess, sys, time
if os.environ["RANK"] == "1":
    time.sleep(1)
    sys.exit(7)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "{token}"])
time.sleep(60)
"""
    assert run(2, script(text), token).returncode == 7
    assert gone(token, within_s=1)


def test_killed_launcher_leaves_nobody(script):
    """SIGKILL of the launcher ends every rank."""
    token = uuid.uuid4().hex
    with running(2, script(SLEEP), token, until="begun", times=2) as launcher:
        launcher.kill()

        assert gone(token)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_interrupted_launcher_ends_its_ranks(script, signum, code):
    """SIGTERM and Ctrl-C reach the ranks; the exit code is the signal's."""
    token = uuid.uuid4().hex
    with running(2, script(SLEEP), token, until="begun", times=2) as launcher:
        launcher.send_signal(signum)

        assert launcher.wait(HANG_S) == code
        assert gone(token, within_s=1)


def test_ranks_that_are_told_to_stop_have_time_for_it(script):
    """A last checkpoint takes longer than a victim of a failure is given."""
    with running(2, script(SAVE), until="begun", times=2) as launcher:
        launcher.terminate()

        assert launcher.stdout.read().count("saved") == 2
        assert launcher.wait(HANG_S) == 0


def test_a_rank_that_ends_of_the_signal_leaves_the_others_time(script):
    """One ends at once; another is still at its last checkpoint, which is saved."""
    text = SAVE.replace("signal.signal", "if os.environ['RANK'] == '0': signal.signal")
    text = text.replace("import signal", "import os, signal")
    with running(2, script(text), until="begun", times=2) as launcher:
        launcher.terminate()

        assert launcher.stdout.read().count("saved") == 1
        assert launcher.wait(HANG_S) == 143


def test_ranks_that_had_to_be_killed_did_not_end_well(script):
    """A second Ctrl-C kills at once what would not stop: that is no success."""
    stubborn = SLEEP.replace("import", "import signal,", 1).replace(
        "time;", "time; signal.signal(signal.SIGTERM, signal.SIG_IGN);", 1
    )
    with running(2, script(stubborn), until="begun", times=2) as launcher:
        launcher.terminate()
        time.sleep(0.5)
        launcher.terminate()

        assert launcher.wait(HANG_S) == 143


def test_listens_on_loopback_only(script):
    """Neither launcher nor ranks accept a connection from another machine."""
    token = uuid.uuid4().hex
    with running(2, script(JOIN), token, until="joined", times=2) as launcher:
        addresses = listening_addresses(token)
        launcher.terminate()
        launcher.wait(HANG_S)

    assert addresses, "the store and Gloo listen"
    assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


def listening_addresses(token):
    """Local addresses of the listening sockets of all processes with ``token``."""
    inodes = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if token.encode() not in (path / "cmdline").read_bytes():
                continue
            links = [os.readlink(link) for link in (path / "fd").iterdir()]
        except OSError:
            continue
        inodes.update(found[1] for link in links if (found := re.match(r"socket:\[(\d+)\]", link)))
    addresses = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                addresses.add(address_of(fields[1].partition(":")[0]))
    return addresses


def address_of(text):
    """The kernel's hexadecimal form, in dots or colons."""
    words = [bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8)]
    found = ipaddress.ip_address(b"".join(words))
    mapped = getattr(found, "ipv4_mapped", None)
    return str(mapped or found)
