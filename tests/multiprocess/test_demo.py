"""The demo and the example script, as a user starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INTANDEM = [str(Path(sys.executable).with_name("intandem"))]
SCRIPT = ["examples/train_gpt.py", "--steps", "11"]


def run(*command, cwd=ROOT):
    """Run to the end, without a launcher's variables; return standard output and error."""
    env = {key: value for key, value in os.environ.items() if key != "WORLD_SIZE"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def losses():
    """What the script prints in one process."""
    return run(sys.executable, *SCRIPT)[0]


def test_demo_as_json(tmp_path):
    """One object on standard output; gradients are equal; the report is there."""
    out, err = run(*INTANDEM, "demo", "--steps", "6", "--format", "json", cwd=tmp_path)
    found = json.loads(out)

    assert found["max_gradient_error"] <= 1e-12
    assert 0 < found["bubble_ratio"] < 1
    assert 0 < found["planned_bubble_ratio"] < 1
    assert found["speed_ratio"] > 0
    assert found["heldout_loss"] < 6
    assert "step 6" in err or "step 1 " in err
    page = (tmp_path / found["report"]).read_text(encoding="utf-8")
    assert 'id="planned-1F7"' in page
    assert 'id="measured-1F7"' in page


def test_demo_for_reading(tmp_path):
    """Piped, it prints plain lines: the claims, and the numbers behind them."""
    out, _ = run(*INTANDEM, "demo", "--steps", "1", "--no-tied", cwd=tmp_path)

    assert "\x1b" not in out
    assert "gradients equal one process: max relative error" in out
    assert "byte entropy" in out
    assert "held-out loss" in out
    assert (tmp_path / "report.html").is_file()


def test_script_prints_losses(losses):
    """One line for every ten steps."""
    assert [line.split()[:2] for line in losses.splitlines()] == [["step", "0"], ["step", "10"]]


@pytest.mark.parametrize(
    "launcher",
    [
        [*INTANDEM, "run", "--ranks", "2"],
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"],
    ],
    ids=["intandem run", "torchrun"],
)
def test_script_is_the_same_in_processes(losses, launcher):
    """The same script, a process for each rank: the same losses, printed once."""
    lines = run(*launcher, *SCRIPT)[0].splitlines()

    assert [line[line.index("step") :] for line in lines if "loss" in line] == losses.splitlines()
