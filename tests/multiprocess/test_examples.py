"""Every example of training, as a user starts it, in its small form: the loss falls."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEPS = {
    "train_vit_digits.py": 41,
    "train_encoder_decoder.py": 21,
    "train_long_gpt.py": 6,
    "train_clip_digits.py": 51,
}
CONFIGS = {"gpt.toml": 21, "vit.toml": 41}


@pytest.mark.parametrize("script", STEPS)
def test_the_loss_falls(script):
    """From the first line to the last."""
    command = [sys.executable, f"examples/{script}", "--steps", str(STEPS[script])]
    env = {key: value for key, value in os.environ.items() if key != "WORLD_SIZE"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    losses = [float(number) for number in re.findall(r"step .* loss (\d+\.\d+)", done.stdout)]
    assert len(losses) >= 2
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_loss_of_a_configuration_falls(name, tmp_path):
    """With nothing changed but the steps and the directory."""
    words = ["--steps", str(CONFIGS[name]), "--directory", str(tmp_path / "run")]
    command = [sys.executable, "-m", "intandem", "train", f"examples/{name}", *words]
    env = {key: value for key, value in os.environ.items() if key != "WORLD_SIZE"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.95 * losses[0]


def test_all_are_here():
    """No script or configuration is left out; the first script has tests of its own."""
    assert {path.name for path in (ROOT / "examples").glob("*.toml")} == set(CONFIGS)
    scripts = {path.name for path in (ROOT / "examples").glob("train_*.py")}
    assert scripts - {"train_gpt.py"} == set(STEPS)
