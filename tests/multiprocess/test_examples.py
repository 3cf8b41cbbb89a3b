"""Every example of training, as a user starts it, in its small form: the loss falls."""

import ast
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
    "train_own_schedule.py": 21,
    "train_llama.py": 21,
}
CONFIGS = {"gpt.toml": 21, "vit.toml": 41}


def run(script, *words):
    """What an example prints."""
    command = [sys.executable, f"examples/{script}", *words]
    env = {key: value for key, value in os.environ.items() if key != "WORLD_SIZE"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("script", STEPS)
def test_the_loss_falls(script):
    """From the first line to the last."""
    done = run(script, "--steps", str(STEPS[script]))
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


def test_a_llama_is_the_same_after_loading(tmp_path):
    """By ``transformers``, from the folder that the pipeline saved."""
    done = run("train_llama.py", "--steps", "2", "--save", str(tmp_path / "llama"))
    assert "the same logits after loading: True" in done.stdout
    assert (tmp_path / "llama" / "config.json").is_file()


def test_a_schedule_of_ones_own_is_shown_and_run():
    """Drawn beside 1F1B, shorter, and measured afterwards."""
    out = run("train_own_schedule.py", "--steps", "1").stdout
    assert "1f1b: 21 s, bubble ratio 0.143" in out
    assert "by-hand: 19 s, bubble ratio 0.053" in out
    assert "measured bubble ratio" in out
    assert out.count("rank 1 ") >= 3  # of the measured step in several lines


def test_the_notebook_runs(monkeypatch):
    """Each of its cells; it keeps no outputs, and shows pictures of schedules and timelines."""
    monkeypatch.chdir(ROOT / "examples")
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    (path,) = Path().glob("*.ipynb")
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    assert sum(len(cell["source"]) for cell in cells) <= 80
    names, shown = {"__name__": "__main__"}, []
    for cell in cells:
        value = last_value("".join(cell["source"]), names)
        shown += [] if value is None else [value._repr_html_()]
    assert len(shown) == 5
    assert all(picture.startswith("<img alt=") for picture in shown)


def last_value(source, names):
    """Run a cell as a notebook does; return what its last line is, if that is an expression."""
    code = ast.parse(source)
    last = code.body.pop() if isinstance(code.body[-1], ast.Expr) else None
    exec(compile(code, "cell", "exec"), names)
    return (
        None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    )


def test_all_are_here():
    """No script or configuration is left out; the first script has tests of its own."""
    assert {path.name for path in (ROOT / "examples").glob("*.toml")} == set(CONFIGS)
    scripts = {path.name for path in (ROOT / "examples").glob("train_*.py")}
    assert scripts - {"train_gpt.py"} == set(STEPS)
