"""``intandem train`` from end to end on local ranks: it learns, stops, and keeps its bits."""

import json
import math
import os
import signal
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import intandem.train.trainer as trainer_module
from intandem.cli.main import main
from intandem.errors import NonFiniteLossError, RunError
from intandem.train import Config, Data, train
from intandem.train.config import (
    CheckpointConfig,
    DataConfig,
    LearningRateConfig,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    PipelineConfig,
    ValidationConfig,
)
from intandem.train.loggers import read_metrics
from intandem.train.stopping import Stop
from train_runs import CrashAt, HaltError, curve


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A text that is soon learned."""
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("one two three four five six seven eight nine ten\n" * 60)
    return path


@pytest.fixture(scope="module")
def base(words):
    """Eight steps of a tiny GPT on two ranks, with everything in it that a run must go on with."""
    return Config(
        steps=8,
        data=DataConfig(source=f"text:{words}", seq=16, rows=8, validation=0.1),
        model=ModelConfig(width=16, blocks=3, heads=2, dropout=0.2),
        optimizer=OptimizerConfig(lr=1e-2),
        learning_rate=LearningRateConfig(warmup=2),
        pipeline=PipelineConfig(ranks=2, microbatches=4, threads_per_rank=1),
        validation=ValidationConfig(every=4, batches=1),
        checkpoint=CheckpointConfig(every=3, keep=2),
    )


@pytest.fixture
def config(base, tmp_path):
    """The same, in a directory of the test's own."""
    return replace(base, directory=str(tmp_path / "run"))


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """The curve of the same run without a stop."""
    directory = tmp_path_factory.mktemp("whole")
    torch.set_num_threads(1)
    train(replace(base, directory=str(directory)))
    return curve(directory)


def crashed(config, step):
    with pytest.raises(HaltError):
        train(config, progress=CrashAt(step))


def test_it_learns_and_leaves_everything(config, tmp_path):
    """The loss falls; metrics, configuration, checkpoints, report are there."""
    outcome = train(replace(config, steps=40, checkpoint=CheckpointConfig(every=15, keep=2)))

    run = tmp_path / "run"
    losses = [line["loss"] for line in read_metrics(run) if "loss" in line]
    assert len(losses) == 40
    assert losses[-1] < 0.6 * losses[0]
    assert outcome.loss == losses[-1]
    assert outcome.validation == {"validation_loss": outcome.validation["validation_loss"]}
    assert outcome.exit_code == 0
    last = read_metrics(run)[-2]
    assert set(last) == {"step", "loss", "lr", "grad_norm", "tokens_per_s", "seconds"}
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == [
        "step-00000030",
        "step-00000040",
    ]
    assert {"config.toml", "environment.json", "report.html"} <= {p.name for p in run.iterdir()}


@pytest.mark.parametrize("ranks", [2, 3, 1])
def test_a_run_goes_on_with_the_same_bits(config, tmp_path, ranks, whole):
    """Crashed after step 5, resumed from step 3 on as many stages or others, dropout and all."""
    crashed(config, 5)
    other = replace(config, pipeline=replace(config.pipeline, ranks=ranks))

    outcome = train(other, resume=True)

    assert outcome.resumed_from == 3
    assert curve(tmp_path / "run") == whole


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_goes_on_with_the_same_bits(config, tmp_path, precision):
    """With accumulation; the scale of fp16 is part of what goes on."""
    config = replace(config, precision=precision, accumulate=2, steps=6)
    train(replace(config, directory=str(tmp_path / "whole")))
    crashed(config, 5)
    train(config, resume=True)
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")
    scaled = [line for line in curve(tmp_path / "run") if "loss_scale" in line]
    assert len(scaled) == (6 if precision == "fp16" else 0)


class Signalled(CrashAt):
    def __call__(self, state):
        if state.step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_saves_and_ends_after_the_step(config, tmp_path, whole):
    """The outcome says so; --resume completes the same curve; then there is nothing left to do."""
    outcome = train(config, progress=Signalled(4))
    assert (outcome.step, outcome.saved_step, outcome.stopped_by) == (4, 4, "SIGTERM")
    assert outcome.exit_code == 143

    outcome = train(config, resume=True)
    assert (outcome.step, outcome.resumed_from, outcome.stopped_by) == (8, 4, None)
    assert curve(tmp_path / "run") == whole
    again = train(config, resume=True)
    assert (again.step, again.resumed_from, again.loss) == (8, 8, None)
    assert curve(tmp_path / "run") == whole


def test_resume_begins_where_there_is_nothing(config):
    """So a job script can always give it."""
    outcome = train(replace(config, steps=1), resume=True)
    assert outcome.resumed_from is None
    assert outcome.step == 1


def test_a_damaged_checkpoint_is_put_aside(config, tmp_path, whole):
    """The one before it is gone on from, and its step is saved anew."""
    crashed(config, 7)
    folder = tmp_path / "run" / "checkpoints"
    victim = next((folder / "step-00000006").glob("model*.safetensors"))
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)

    outcome = train(config, resume=True)

    assert outcome.resumed_from == 3
    assert (folder / "step-00000006.refused").is_dir()
    assert curve(tmp_path / "run") == whole


def test_other_data_are_not_gone_on_with(config, words, tmp_path):
    """Text that has changed since is refused, with what it was."""
    text = tmp_path / "text.txt"
    text.write_text(words.read_text())
    config = replace(config, steps=1, data=replace(config.data, source=f"text:{text}"))
    train(config)
    text.write_text(words.read_text().replace("ten", "TEN"))
    with pytest.raises(RunError, match="are not those that the run in"):
        train(replace(config, steps=2), resume=True)


def test_accumulation_is_the_mean(config, tmp_path):
    """Two batches of 4 rows are one of 8: the same norms of gradients but for rounding."""
    model = replace(config.model, dropout=0.0)
    one = replace(config, model=model, steps=3)

    def run(name, num_rows, accumulate):
        directory = str(tmp_path / name)
        data = replace(config.data, rows=num_rows)
        train(replace(one, directory=directory, data=data, accumulate=accumulate))
        return [line["grad_norm"] for line in curve(tmp_path / name) if "loss" in line]

    assert run("two", 4, 2) == pytest.approx(run("one", 8, 1), rel=1e-5)


def own_data(num_rows=64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_rows, 4, generator=generator)
    return Data(training=(x, x @ torch.ones(4, 1)), validation=None, loss=own_loss)


def own_loss(output, batch):
    return F.mse_loss(output, batch[1])


def own_model(width=8):
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 1))


def broken_data():
    x = torch.full((64, 4), math.nan)
    return Data(training=(x, x[:, :1]), loss=own_loss)


class Stream:
    """An iterator of one's own."""

    def __init__(self):
        self.at = 0

    def __next__(self):
        self.at += 1
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(self.at))
        return x, x.sum(1, keepdim=True)

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


def streamed_data():
    return Data(training=Stream(), loss=own_loss)


def own(config, data, **more):
    return replace(
        config,
        data=DataConfig(source=f"{__file__}:{data}", rows=8),
        model=ModelConfig(name=f"{__file__}:own_model", **more),
        pipeline=PipelineConfig(ranks=1, microbatches=2),
    )


@pytest.mark.parametrize("data", ["own_data", "streamed_data"])
def test_own_parts(config, tmp_path, data):
    """Functions of a file: rows, or an iterator with a position, which is gone on from."""
    config = own(config, data, arguments={"width": 5})
    train(replace(config, directory=str(tmp_path / "whole")))
    crashed(config, 5)
    train(config, resume=True)
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")
    assert "rows_per_s" in read_metrics(tmp_path / "run")[0]
    assert (tmp_path / "run" / "code" / "test_train.py").is_file()


def test_a_loss_that_is_no_number_ends_the_run(config):
    """Named; what was saved before stays."""
    with pytest.raises(NonFiniteLossError, match="loss is nan at stage 0 micro-batch 0"):
        train(own(config, "broken_data"))


def test_digits_and_their_accuracy(config, tmp_path):
    """What the loss function returns besides is logged, of training and of what is held out."""
    config = replace(
        config,
        steps=4,
        data=DataConfig(source="images:digits", rows=16, validation=0.2),
        model=ModelConfig(name="vit", width=16, blocks=2, heads=2),
    )
    outcome = train(config)
    assert set(outcome.validation) == {"validation_loss", "validation_accuracy"}
    lines = read_metrics(tmp_path / "run")
    assert 0 <= lines[0]["accuracy"] <= 1
    assert lines[0]["images_per_s"] > 0


def test_only_some_steps_are_logged(config, tmp_path):
    """Every third, and the last; nothing of validation or checkpoints where these are off."""
    config = replace(
        config,
        logging=LoggingConfig(every=3),
        clip=0.0,
        validation=ValidationConfig(every=0),
        checkpoint=CheckpointConfig(every=0),
    )
    outcome = train(config)
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [3, 6, 8]
    assert "grad_norm" not in lines[0]
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert outcome.saved_step is None
    assert outcome.validation == {}


def test_json_is_one_object(config, tmp_path, capsys, words):
    """On standard output; everything else goes to standard error."""
    (tmp_path / "c.toml").write_text(f'[data]\nsource = "text:{words}"\nseq = 16\nrows = 4\n')
    words_of = ["--steps", "2", "--directory", str(tmp_path / "run"), "--model.width", "12"]
    assert main(["train", str(tmp_path / "c.toml"), *words_of, "--format", "json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["step"] == 2
    assert found["directory"] == str(tmp_path / "run")
    assert "step 1/2  loss" in err
    assert "width = 12" in err
    assert main(["train", str(tmp_path / "run" / "config.toml")]) == 2
    assert "has a run in it; go on with it by --resume" in capsys.readouterr().err


def test_the_stop_is_heard_once():
    """The first signal is taken note of; the next one does what it always does."""
    before = signal.getsignal(signal.SIGINT)
    try:
        stop = Stop()
        stop(signal.SIGINT, None)
        assert stop.signum == signal.SIGINT
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert trainer_module.is_first()
