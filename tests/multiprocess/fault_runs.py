"""Starts ``fault_script.py`` under a launcher and says how it ended."""

import os
import re
import socket
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("fault_script.py")
TRAIN_SCRIPT = Path(__file__).with_name("train_script.py")
HANG_S = 45
_MAIN = "import sys; from intandem.cli.main import main; sys.exit(main())"
LAUNCHERS = {
    "intandem": ["-c", _MAIN, "run", "--ranks"],
    "torchrun": ["-m", "torch.distributed.run", "--nproc-per-node"],
}


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        code: exit code of the launcher.
        text: everything that was printed.
        errors: last error of each rank that showed one, by rank.
        gone_s: seconds from the fault until launcher and ranks were gone.
        left: command lines of processes of the run that are still there.
    """

    code: int
    text: str
    errors: dict[int, str]
    gone_s: float
    left: list[str]


def command(launcher, ranks, *script):
    """Command line that starts ``script`` on ``ranks`` processes; no launcher: one process."""
    if launcher == "python":
        return [sys.executable, *script]
    return [sys.executable, *LAUNCHERS[launcher], str(ranks), *script]


def run(launcher, fault, ranks=3, script=SCRIPT):
    """Run ``script`` with ``fault`` and wait until everybody is gone."""
    token = uuid.uuid4().hex
    line = command(launcher, ranks, str(script), fault, token)
    done = subprocess.run(line, capture_output=True, text=True, timeout=HANG_S, check=False)
    end_s = time.time()
    text = done.stdout + done.stderr
    fault_s = re.search(r"FAULT ([0-9.]+)", text)
    gone_s = end_s - float(fault_s[1]) if fault_s else float("nan")
    sys.stdout.write(f"{launcher} {fault}: exit code {done.returncode}, gone in {gone_s:.2f} s\n")
    return Ended(done.returncode, text, errors_of(done.stderr), gone_s, processes_with(token))


def stopped(launcher, signum, ranks=3):
    """Tell the launcher to stop once every rank is at work, and wait until everybody is gone."""
    token = uuid.uuid4().hex
    line = command(launcher, ranks, str(SCRIPT), "forever", token)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(line, text=True, start_new_session=True, **pipes) as process:
        try:
            joined = 0
            while joined < ranks:
                joined += "at work" in process.stdout.readline()
            process.send_signal(signum)
            text, _ = process.communicate(timeout=HANG_S)
        finally:
            process.kill()
    return Ended(process.returncode, text, errors_of(text), float("nan"), processes_with(token))


def errors_of(stderr):
    """The line that names the error, of each rank that showed a traceback of its own."""
    pattern = r"\[rank(\d+)\]: ((?:[\w.]+\.)?(?:PeerFailureError|RunError)): (.*)"
    return {int(rank): f"{name}: {text}" for rank, name, text in re.findall(pattern, stderr)}


def processes_with(token):
    """Command lines of living processes that have ``token`` among their arguments."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if token in line:
            found.append(line)
    return found


def run_by_hand(fault, culprit, ranks=2):
    """Run without a launcher, as under Slurm: rank 0 hosts the store. Returns what ranks said."""
    token = uuid.uuid4().hex
    line = [sys.executable, str(SCRIPT), fault, token, str(culprit)]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            line,
            env={**os.environ, **place, "RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    said = [process.communicate(timeout=HANG_S)[1] for process in started]
    return [process.returncode for process in started], said
