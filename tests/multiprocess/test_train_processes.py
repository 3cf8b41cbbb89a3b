"""``intandem train`` as a user starts it: processes, signals, SIGKILL, and the same bits after."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = sys.executable
TRAIN = [PYTHON, "-m", "intandem", "train"]
LAUNCHERS = {
    "threads": TRAIN,
    "intandem": [PYTHON, "-m", "intandem", "run", "--ranks", "2", *TRAIN[1:]],
    "torchrun": [PYTHON, "-m", "torch.distributed.run", "--nproc-per-node", "2", *TRAIN[1:]],
}
HANG_S = 100


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A tiny GPT on two ranks, thirty steps, dropout and all."""
    folder = tmp_path_factory.mktemp("config")
    (folder / "words.txt").write_text("one two three four five six seven eight nine ten\n" * 60)
    path = folder / "c.toml"
    path.write_text(
        f"""
steps = 30
[data]
source = "text:{folder / "words.txt"}"
seq = 16
rows = 8
validation = 0.1
[model]
width = 16
blocks = 3
heads = 2
dropout = 0.2
[pipeline]
ranks = 2
microbatches = 4
threads_per_rank = 1
[validation]
every = 10
batches = 1
[checkpoint]
every = 4
"""
    )
    return path


def environment():
    kept = {k: v for k, v in os.environ.items() if k not in {"WORLD_SIZE", "RANK"}}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


def start(launcher, config, directory, *words):
    """Begin; standard output and error come together."""
    command = [
        *LAUNCHERS.get(str(launcher), launcher),
        str(config),
        "--directory",
        str(directory),
        *words,
    ]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def finish(process):
    """Wait; return the exit code and what was printed. Nothing of it stays."""
    try:
        out, _ = process.communicate(timeout=HANG_S)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out


def complete(launcher, config, directory, *words):
    code, out = finish(start(launcher, config, directory, *words))
    assert code == 0, out
    return out


def curve(directory):
    """What was logged, without what the clock says."""
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    timed = ("seconds", "tokens_per_s")
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


def wait_for_step(directory, step, process):
    """Until a line of that step is in the metrics."""
    path, limit_s = directory / "metrics.jsonl", time.monotonic() + HANG_S
    while time.monotonic() < limit_s and process.poll() is None:
        if path.is_file() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.01)
    _, out = finish(process)
    pytest.fail(f"step {step} was not reached\n{out}")


@pytest.fixture(scope="module")
def uninterrupted(config, tmp_path_factory):
    """The curve of a run on two threads."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    complete("threads", config, directory)
    return curve(directory)


def first_or_slow(*values):
    """The first in every run of the tests, the others in the full matrix."""
    return [values[0], *(pytest.param(value, marks=pytest.mark.slow) for value in values[1:])]


@pytest.mark.parametrize("launcher", first_or_slow("intandem", "torchrun"))
def test_processes_have_the_curve_of_threads(config, tmp_path, launcher, uninterrupted):
    """Bit for bit; rank 0 alone speaks and writes."""
    out = complete(launcher, config, tmp_path / "run")
    assert curve(tmp_path / "run") == uninterrupted
    assert len(re.findall(r"step 30 of 30, loss", out)) == 1
    assert out.count('precision = "fp32"') == 1


@pytest.mark.parametrize("launcher", first_or_slow("intandem", "threads", "torchrun"))
def test_sigterm_saves_and_ends(config, tmp_path, launcher, uninterrupted):
    """All ranks after the same step; the exit code says that it is not complete; it goes on."""
    directory = tmp_path / "run"
    process = start(launcher, config, directory)
    wait_for_step(directory, 5, process)
    process.send_signal(signal.SIGTERM)
    code, out = finish(process)

    assert code == (1 if launcher == "torchrun" else 143), out
    assert "told to stop by SIGTERM after step" in out
    steps = [line["step"] for line in curve(directory) if "loss" in line]
    assert 5 <= steps[-1] < 30
    assert (directory / "checkpoints" / f"step-{steps[-1]:08d}").is_dir()
    complete(launcher, config, directory, "--resume")
    assert curve(directory) == uninterrupted


@pytest.mark.parametrize("ranks", first_or_slow(3, 2, 1))
def test_sigkill_of_any_rank_at_any_step(config, tmp_path, ranks, uninterrupted):
    """A process of the run is killed; it goes on, on as many stages or others, with its bits."""
    directory, draws = tmp_path / "run", random.Random(ranks)
    process = start("intandem", config, directory)
    wait_for_step(directory, draws.randint(5, 20), process)
    os.kill(draws.choice(ranks_of(process.pid)), signal.SIGKILL)
    code, out = finish(process)
    assert code == 137, out

    complete("threads", config, directory, "--resume", "--pipeline.ranks", str(ranks))

    assert curve(directory) == uninterrupted


def test_a_restart_by_torchrun_goes_on(config, tmp_path, uninterrupted):
    """A rank is killed; all are started again, find each other, and go on, with the same bits."""
    directory = tmp_path / "run"
    launcher = [*LAUNCHERS["torchrun"][:3], "--standalone", "--max-restarts", "1"]
    process = start([*launcher, *LAUNCHERS["torchrun"][3:]], config, directory, "--resume")
    wait_for_step(directory, 9, process)
    os.kill(ranks_of(process.pid)[0], signal.SIGKILL)
    code, out = finish(process)

    assert code == 0, out
    assert re.search(r"going on after step \d+", out), out
    assert curve(directory) == uninterrupted


def full_disk(folder):
    """A logger that fails, where only rank 0 is."""
    del folder
    return FullDisk()


class FullDisk:
    def log(self, numbers, step):
        del numbers
        if step == 3:
            raise OSError(28, "No space left on device", "events")


def test_what_fails_on_one_rank_alone_is_told_to_all(config, tmp_path):
    """The others name it, and none waits."""
    own = tmp_path / "c.toml"
    loggers = f'[logging]\nloggers = ["{__file__}:full_disk"]\n'
    own.write_text(config.read_text() + loggers)
    code, out = finish(start("intandem", own, tmp_path / "run"))
    assert code == 1
    assert "intandem train: events: no space left on device" in out
    assert re.search(r"\[rank 1\] .*rank 0 raised OSError: .*No space left on device", out)


def ranks_of(pid):
    """Processes that ``pid`` has started."""
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=True
    )
    return [int(word) for word in found.stdout.split()]
