"""What a run keeps so that it goes on as it was, and what it is not gone on with."""

import functools
import json
import time
from dataclasses import replace

import pytest
from torch import nn

import train_runs
from intandem.checkpoint import CheckpointFolder
from intandem.checkpoint.disk import RealDisk
from intandem.checkpoint.loading import Checkpoint
from intandem.cli.main import main
from intandem.errors import CheckpointError, RunError
from intandem.pipeline.checkpoints import Checkpoints
from intandem.runtime.loss_report import PromisedLoss
from intandem.train import Config, train
from intandem.train.config import (
    CheckpointConfig,
    DataConfig,
    LoggingConfig,
    ModelConfig,
    PipelineConfig,
    ValidationConfig,
)
from intandem.train.config_file import write_config
from intandem.train.data.text import find_sources
from intandem.train.run_directory import RunDirectory
from intandem.views.report_json import parse_report
from train_runs import CrashAt, HaltError, config, curve


def crashed(asked, step):
    with pytest.raises(HaltError):
        train(asked, progress=CrashAt(step))


def test_tokens_of_another_run_are_not_used(tmp_path):
    """Without a run to go on with, they are learned from this text."""
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat and that was that\n" * 90)
    asked = Config(
        directory=str(tmp_path / "run"),
        steps=1,
        data=DataConfig(source=f"text:{text}", tokenizer="bpe", vocab=270, seq=8, rows=4),
        model=ModelConfig(width=8, blocks=1, heads=2),
        pipeline=PipelineConfig(microbatches=2),
    )
    train(asked)
    learned = (tmp_path / "run" / "tokenizer.json").read_text()
    stale = json.loads(learned)
    stale["model"]["merges"] = []
    (tmp_path / "other").mkdir()
    kept = tmp_path / "other" / "tokenizer.json"
    kept.write_text(json.dumps(stale))

    for resume in (False, True):  # there is nothing to go on with yet, then there is
        train(replace(asked, directory=str(tmp_path / "other")), resume=resume)
        assert kept.read_text() == learned


def test_a_folder_with_one_file_is_split_within_it(tmp_path):
    """So there is something to train on; of two files, one always is."""
    (tmp_path / "a.txt").write_bytes(b"a" * 80 + b"b" * 20)
    found = find_sources(DataConfig(source=f"text:{tmp_path}", validation=0.2), 0)
    assert (found.training, found.heldout) == (b"a" * 80, b"b" * 20)
    (tmp_path / "c.txt").write_bytes(b"c")
    found = find_sources(DataConfig(source=f"text:{tmp_path}", validation=0.9), 0)
    assert sorted([len(found.training), len(found.heldout)]) == [1, 100]


def test_the_number_of_microbatches_is_kept(tmp_path):
    """It is 4 per rank by default, and would change with the ranks, and the bits with it."""
    asked = config(tmp_path / "run")
    train(replace(asked, directory=str(tmp_path / "whole")))
    crashed(asked, 5)
    one = replace(asked, pipeline=PipelineConfig(ranks=1, threads_per_rank=1))
    train(one, resume=True)
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")
    extra = Checkpoint(tmp_path / "run" / "checkpoints" / "step-00000008").extra
    assert extra["microbatches"] == 8


def test_the_last_validation_is_kept(tmp_path):
    """A run that is done says it again; one that had none yet makes up for it."""
    asked = config(tmp_path / "run")
    done = train(asked)
    lines = curve(tmp_path / "run")
    again = train(asked, resume=True)
    assert again.validation == done.validation != {}
    assert curve(tmp_path / "run") == lines

    none = replace(asked, directory=str(tmp_path / "none"), validation=ValidationConfig(every=0))
    train(none)
    made_up = train(replace(none, validation=asked.validation), resume=True)
    assert made_up.validation == done.validation


@pytest.mark.parametrize("source", ["data", "streamed_data"])
def test_other_data_of_ones_own_are_not_gone_on_with(tmp_path, monkeypatch, source):
    """Some rows, or the first batch, tell them apart where the user says nothing."""
    asked = config(tmp_path, source)
    crashed(asked, 4)
    monkeypatch.setattr(train_runs, "SCALE", 2.0)
    with pytest.raises(RunError, match="are not those that the run in"):
        train(asked, resume=True)
    monkeypatch.setattr(train_runs, "SCALE", 1.0)
    assert train(asked, resume=True).resumed_from == 3


def test_rows_that_always_differ_are_gone_on_with(tmp_path):
    """Augmented ones cannot be told from others."""
    asked = config(tmp_path, "augmented_data")
    crashed(asked, 4)
    assert train(asked, resume=True).resumed_from == 3


def test_data_that_end_early_are_told(tmp_path, monkeypatch):
    """With the step, and not as a StopIteration, which would end a loop somewhere."""
    monkeypatch.setattr(train_runs, "LENGTH", 5)
    said = "the data ended early: Stream has no batch for step 6 of 8"
    with pytest.raises(RunError, match=said):
        train(config(tmp_path / "run", "streamed_data"))
    monkeypatch.setattr(train_runs, "LENGTH", 0)
    with pytest.raises(RunError, match="no batch for step 1 of 8"):
        train(config(tmp_path / "none", "streamed_data"))


def test_another_precision_is_not_gone_on_with(tmp_path):
    """The scale of fp16 would have no place."""
    directory = RunDirectory(str(tmp_path))
    directory.begin(Config(precision="fp16"), step=0)
    with pytest.raises(RunError, match="precision is 'bf16', and was 'fp16' in the run"):
        directory.refuse_other_config(Config(precision="bf16"))


def in_its_own_way(width):
    return nn.Linear(4, width)


class Callable:
    def __call__(self, output, batch):
        return train_runs.loss(output, batch)


partial_model = functools.partial(in_its_own_way, 3)
callable_loss = Callable()


def test_code_of_any_kind_is_kept(tmp_path):
    """Partial functions, objects, functions written in C; files of one name, all of them."""
    (tmp_path / "sub").mkdir()
    other = tmp_path / "sub" / "test_train_going_on.py"
    other.write_text("def data():\n    pass\n")
    directory = RunDirectory(str(tmp_path / "run"))
    model = ModelConfig(name=f"{__file__}:partial_model", loss=f"{__file__}:callable_loss")
    data = DataConfig(source=f"{other}:data")
    directory.begin(Config(data=data, model=model), step=0)
    directory.begin(Config(data=data, model=replace(model, loss="math:sqrt")), step=0)
    code = {path.name: path.read_text() for path in (tmp_path / "run" / "code").iterdir()}
    assert code["test_train_going_on.py"] == other.read_text()
    assert "in_its_own_way" in code["test_train_going_on.2.py"]
    assert len(code) == 2


def test_the_curves_of_a_report_are_those_of_the_whole_run(tmp_path):
    """Steps before the run was gone on with count; batches of one update are one step."""
    asked = config(tmp_path, accumulate=2)
    crashed(asked, 5)
    train(asked, resume=True)
    report = parse_report((tmp_path / "report.json").read_text(), what="it")
    losses = [(line["step"], line["loss"]) for line in curve(tmp_path) if "loss" in line]
    assert list(report.loss.training) == losses
    assert [step for step, _ in losses] == list(range(1, 9))
    assert [step for step, _ in report.loss.heldout] == [4, 8]
    assert report.throughput.unit == "rows"


def test_losses_are_waited_for_when_they_are_logged(tmp_path, monkeypatch):
    """Ranks go on meanwhile; the numbers are the same."""
    asked = config(tmp_path / "each", clip=0.0, validation=ValidationConfig(every=0))
    train(asked)
    waited = []
    item = PromisedLoss.item
    monkeypatch.setattr(PromisedLoss, "item", lambda loss: waited.append(1) or item(loss))
    some = replace(asked, directory=str(tmp_path / "some"), logging=LoggingConfig(every=3))
    assert train(some).loss == curve(tmp_path / "each")[-1]["loss"]
    assert len(waited) == 3
    each = [line for line in curve(tmp_path / "each") if line["step"] in {3, 6, 8}]
    assert curve(tmp_path / "some") == each


class FullFrom(RealDisk):
    """A disk that is full from some save on."""

    def __init__(self, count):
        self.left = count

    def write_tensors(self, file, tensors):
        self.left -= 1
        if self.left < 0:
            raise OSError(28, "No space left on device")
        super().write_tensors(file, tensors)


def full_after(monkeypatch, count):
    init, disk = Checkpoints.__init__, FullFrom(count)

    def begin(self, *args):
        init(self, *args)
        self.disk = disk

    monkeypatch.setattr(Checkpoints, "__init__", begin)


@pytest.mark.parametrize(("num_files", "last"), [(2, 6), (4, 8)])
def test_a_full_disk_ends_the_run(tmp_path, monkeypatch, num_files, last):
    """The next save says so, or the end of the run; what was saved before stays."""
    full_after(monkeypatch, num_files)
    with pytest.raises(CheckpointError, match=f"step-{last:08d} was not saved: .*No space left"):
        train(config(tmp_path))
    assert CheckpointFolder(tmp_path / "checkpoints").steps() == [3, 6][: num_files // 2]


def test_a_save_that_is_under_way_is_finished_when_the_run_fails(tmp_path, monkeypatch):
    """So a run that is gone on with at once finds it."""
    asked = config(tmp_path)
    slow = RealDisk.write_tensors

    def write(self, file, tensors):
        time.sleep(0.3)
        slow(self, file, tensors)

    monkeypatch.setattr(RealDisk, "write_tensors", write)
    crashed(asked, 4)
    assert CheckpointFolder(tmp_path / "checkpoints").steps() == [3]


def test_exit_codes(tmp_path, monkeypatch, capsys):
    """2, in a sentence, for what is wrong before training; 1, with its place, for what fails."""
    asked = config(tmp_path / "run", "streamed_data", checkpoint=CheckpointConfig(every=0))
    path = tmp_path / "c.toml"
    path.write_text(write_config(asked))
    monkeypatch.setattr(train_runs, "LENGTH", 5)
    assert main(["train", str(path)]) == 1
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert "\nintandem train: the data ended early: Stream has no batch for step 6 of 8" in err
    assert main(["train", str(path)]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "has a run in it" in err
