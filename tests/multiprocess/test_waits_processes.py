"""A rank that waits for another is healthy: it is not blamed, and it hears what it is told."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from fault_runs import HANG_S, command, processes_with

SCRIPT = Path(__file__).with_name("waiting_script.py")


def started(launcher, fault, token):
    line = command(launcher, 2, str(SCRIPT), fault, token)
    pipe = subprocess.PIPE
    return subprocess.Popen(line, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def test_waiting_to_add_up_gradients_is_no_hang(tmp_path):
    """Longer than an action may take: rank 1's tied gradient waits for four slow backwards."""
    with started("intandem", "slow", str(tmp_path)) as process:
        output, _ = process.communicate(timeout=HANG_S)

    assert process.returncode == 0, output


@pytest.mark.parametrize("launcher", ["intandem", "torchrun"])
def test_a_signal_reaches_a_rank_that_waits(launcher, tmp_path):
    """What is waited for never comes; the rank that was told is named, and nothing is left."""
    with started(launcher, "sleep", str(tmp_path)) as process:
        said = (re.search(r"PROCESS (\d+)", line) for line in process.stdout)
        number = int(next(found for found in said if found)[1])
        time.sleep(2)  # it waits by then, most likely
        os.kill(number, signal.SIGTERM)
        output, _ = process.communicate(timeout=HANG_S)

    assert process.returncode != 0
    assert "rank 0 was told to end by SIGTERM at step 0" in output, output
    assert processes_with(str(tmp_path)) == []
