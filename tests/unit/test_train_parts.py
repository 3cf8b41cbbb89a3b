"""Learning rates, parameter groups, loggers, the run's directory: the trainer's parts."""

import io
import json
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

from intandem.cli.cmd_train import _as_text, _showing
from intandem.errors import RunError
from intandem.train.config import (
    Config,
    DataConfig,
    GroupConfig,
    LearningRateConfig,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
)
from intandem.train.data.dataset import Data
from intandem.train.learning_rate import factor
from intandem.train.loggers import JsonLines, find_loggers, forget_after, read_metrics
from intandem.train.models import find_model
from intandem.train.optimizers import find_optimizer, set_learning_rate
from intandem.train.progress import State, time_text
from intandem.train.run_directory import RunDirectory
from intandem.train.trainer import Outcome

TEXT = Data(training=None, facts={"vocab": 11, "seq": 8})


def rates(shape, warmup, final, num_steps):
    config = LearningRateConfig(shape=shape, warmup=warmup, final=final)
    return [factor(config, step, num_steps) for step in range(num_steps)]


def test_shapes():
    """Of five steps, two of warm-up: in numbers."""
    assert rates("constant", 2, 0.1, 5) == [0.5, 1.0, 1.0, 1.0, 1.0]
    assert rates("linear", 2, 0.1, 5) == pytest.approx([0.5, 1.0, 0.7, 0.4, 0.1])
    middle = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 3))
    other = 0.1 + 0.9 * 0.5 * (1 + math.cos(2 * math.pi / 3))
    assert rates("cosine", 2, 0.1, 5) == pytest.approx([0.5, 1.0, middle, other, 0.1])
    assert rates("linear", 0, 0.0, 3) == pytest.approx([1.0, 0.5, 0.0])


@given(
    st.sampled_from(["constant", "linear", "cosine"]),
    st.integers(0, 30),
    st.floats(0, 1),
    st.integers(1, 40),
)
def test_rates_rise_and_then_do_not(shape, warmup, final, num_steps):
    """From above 0 to the peak, then down to the final share at the last step."""
    found = rates(shape, warmup, final, num_steps)
    assert all(0 <= rate <= 1 + 1e-12 for rate in found)
    top = min(max(warmup - 1, 0), num_steps - 1)
    assert all(a < b for a, b in pairwise(found[: top + 1]))
    assert all(a >= b for a, b in pairwise(found[top:]))
    if shape != "constant" and num_steps > max(warmup, 1):
        assert found[-1] == pytest.approx(final)


def nothing(*_, **__):
    return {}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.norm = nn.LayerNorm(2)
        self.frozen = nn.Parameter(torch.zeros(1), requires_grad=False)


def groups_of(config):
    model = Net()
    named = dict(model.named_parameters())
    names = {id(p): name for name, p in named.items()}
    optimizer = find_optimizer(config, named.items(), list(named))
    return optimizer, [
        ([names[id(p)] for p in group["params"]], group["weight_decay"])
        for group in optimizer.param_groups
    ]


def test_norms_and_biases_do_not_decay():
    """By default; frozen parameters are left out."""
    _, found = groups_of(OptimizerConfig(weight_decay=0.3))
    assert found == [(["inner.bias", "norm.weight", "norm.bias"], 0.0), (["inner.weight"], 0.3)]


def test_groups_have_rates_of_their_own():
    """The first that matches counts, and gets its share of the rate; plain SGD, too."""
    groups = (
        GroupConfig(match=("inner.*",), lr_scale=0.5),
        GroupConfig(match=("*.bias", "inner.weight"), weight_decay=0.0),
    )
    optimizer, found = groups_of(
        OptimizerConfig(name="sgd", momentum=0.5, weight_decay=0.2, groups=groups)
    )
    assert [names for names, _ in found] == [
        ["inner.weight", "inner.bias"],
        ["norm.bias"],
        ["norm.weight"],
    ]
    assert [decay for _, decay in found] == [0.2, 0.0, 0.2]
    set_learning_rate(optimizer, 0.01)
    assert [group["lr"] for group in optimizer.param_groups] == [0.005, 0.01, 0.01]
    assert isinstance(optimizer, torch.optim.SGD)


def test_optimizers_that_are_none():
    """A pattern without a parameter names the nearest; a name names the known ones."""
    typo = OptimizerConfig(groups=(GroupConfig(match=("iner.weight",)),))
    with pytest.raises(ValueError, match=r"groups\[0\]\.match has 'iner\.weight'.*'inner\.weight'"):
        groups_of(typo)
    with pytest.raises(ValueError, match="'adam'; expected adamw, sgd or module:function"):
        groups_of(OptimizerConfig(name="adam"))
    with pytest.raises(TypeError, match=r"returned a dict; expected a torch\.optim\.Optimizer"):
        groups_of(OptimizerConfig(name=f"{__file__}:nothing"))


def test_own_optimizer_gets_groups_rate_and_arguments():
    """As torch's own take them."""
    config = OptimizerConfig(name="torch.optim:Adagrad", lr=0.5, arguments={"eps": 0.25})
    optimizer, found = groups_of(config)
    assert isinstance(optimizer, torch.optim.Adagrad)
    assert optimizer.param_groups[0]["eps"] == 0.25
    assert [decay for _, decay in found] == [0.0, 0.1]


def own_model(width, data, name=""):
    del name
    return nn.Linear(width, data.facts["vocab"])


def test_models():
    """By name, by function; the same weights for the same seed; what does not fit is told."""
    config = Config(model=ModelConfig(width=8, heads=2, blocks=1))
    one, two = find_model(config, TEXT), find_model(config, TEXT)
    assert torch.equal(one.head.weight, two.head.weight)
    assert one.head.weight.shape == (11, 8)
    own = ModelConfig(name=f"{__file__}:own_model", arguments={"width": 3, "name": "x"})
    assert find_model(Config(model=own), TEXT).weight.shape == (11, 3)
    for model, said in (
        (ModelConfig(name="bert"), "model.name is 'bert'; expected gpt, vit or module:function"),
        (ModelConfig(name="vit"), "model.name is 'vit', which is for images"),
        (ModelConfig(width=10, heads=4), "take a multiple, such as 12"),
    ):
        with pytest.raises(ValueError, match=said):
            find_model(Config(model=model), TEXT)
    with pytest.raises(
        ValueError, match=r"takes \(width, data, name=''\): missing.*\[model\.arguments\]"
    ):
        find_model(Config(model=ModelConfig(name=f"{__file__}:own_model")), TEXT)
    with pytest.raises(TypeError, match=r"returned a dict; expected an nn\.Module"):
        find_model(Config(model=ModelConfig(name="builtins:dict")), TEXT)


class Own:
    def __init__(self, folder):
        self.file = (folder / "own").open("w")

    def log(self, numbers, step):
        self.file.write(f"{step} {dict(numbers)}\n")

    def close(self):
        self.file.close()


def test_loggers(tmp_path):
    """A line each; the user's own get the same, and are closed; what is none is refused."""
    loggers = find_loggers(LoggingConfig(loggers=(f"{__file__}:Own",)), tmp_path, step=0)
    loggers.log({"loss": 0.1 + 0.2}, 1)
    loggers.log({"grad_norm": math.inf}, 2)
    loggers.close()
    assert read_metrics(tmp_path) == [
        {"step": 1, "loss": 0.1 + 0.2},
        {"step": 2, "grad_norm": None},
    ]
    assert (tmp_path / "own").read_text().splitlines()[1] == "2 {'grad_norm': inf}"
    with pytest.raises(TypeError, match="returned a dict; expected something with log"):
        find_loggers(LoggingConfig(loggers=(f"{__file__}:nothing",)), tmp_path, step=0)


def test_lines_after_a_checkpoint_are_forgotten(tmp_path):
    """And one that a crash cut off."""
    lines = JsonLines(tmp_path / "metrics.jsonl")
    for step in (1, 2, 2, 3):
        lines.log({"loss": step / 10}, step)
    lines.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    forget_after(tmp_path, 2)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 2]
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 3


def test_a_directory_keeps_what_repeats_the_run(tmp_path):
    """The configuration, earlier ones, each start, and the user's code."""
    directory = RunDirectory(str(tmp_path / "run"))
    own = ModelConfig(name=f"{__file__}:own_model")
    directory.begin(Config(model=own), step=0)
    directory.begin(Config(model=own, steps=5), step=3)

    path = directory.path
    assert "steps = 5" in (path / "config.toml").read_text()
    assert "steps = 1000" in (path / "config.1.toml").read_text()
    starts = json.loads((path / "environment.json").read_text())
    assert [start["step"] for start in starts] == [0, 3]
    assert starts[0]["packages"]["torch"] == torch.__version__
    assert "def own_model" in (path / "code" / "test_train_parts.py").read_text()


def test_a_directory_has_one_run(tmp_path):
    """Without --resume it is refused; with it, only the same data and model are gone on with."""
    directory = RunDirectory(str(tmp_path))
    directory.refuse_other_run()
    directory.begin(Config(), step=0)
    directory.refuse_other_run()
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(RunError, match="has a run in it; go on with it by --resume"):
        directory.refuse_other_run()
    directory.refuse_other_config(Config(steps=9, clip=0.5))
    for other, said in (
        (Config(seed=1), "seed is 1, and was 0 in the run"),
        (Config(data=DataConfig(rows=3)), "data.rows is 3, and was 16"),
        (Config(model=ModelConfig(width=6)), "model.width is 6, and was 192"),
    ):
        with pytest.raises(RunError, match=said):
            directory.refuse_other_config(other)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be made: "):
        RunDirectory(str(tmp_path / "file"))


def test_progress_is_plain_where_nobody_watches():
    """The first state at once, lines that stay always, no escape codes."""
    console = Console(file=io.StringIO(), width=80)
    with _showing(console) as progress:
        for step in (1, 2):
            progress(State(step, 10, 2.5, 1234.5, "tokens", 200.0))
        progress.say("checkpoint [1]")
    assert console.file.getvalue() == (
        "step 1/10  loss 2.5000  1,234 tokens/s  3 min 20 s left\ncheckpoint [1]\n"
    )
    assert [time_text(s) for s in (3.4, 61, 3700)] == ["3 s", "1 min 01 s", "1 h 01 min"]


def test_how_a_run_ended():
    """The exit code and the words, complete or stopped."""
    done = Outcome(
        "runs/x", 10, 10, None, None, 10, 2.5, {"validation_loss": 3.0}, 9.0, 50.0, "rows"
    )
    assert done.exit_code == 0
    assert _as_text(done).splitlines() == [
        "step 10 of 10, loss 2.5000, 50 rows/s",
        "validation loss 3.0000",
        "run in runs/x",
    ]
    stopped = Outcome("runs/x", 4, 10, None, "SIGTERM", 4, 2.5, {}, 9.0, 50.0, "rows")
    assert stopped.exit_code == 143
    assert "stopped by SIGTERM: saved after step 4; go on with --resume" in _as_text(stopped)
