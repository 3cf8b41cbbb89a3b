"""What several processes do to a folder of checkpoints at once; loading is all or nothing."""

import copy
import os
import threading

import pytest
import torch
from torch import nn

import intandem as it
from checkpoint_runs import adamw, differing, model, pipeline
from intandem.checkpoint import CheckpointFolder, load_into, loading
from intandem.checkpoint.disk import RealDisk
from intandem.checkpoint.shards import check_presence
from intandem.errors import CheckpointError
from models import SAMPLES


class Waiting(RealDisk):
    """Writes no tensors until it may."""

    def __init__(self):
        self.begun, self.may = threading.Event(), threading.Event()

    def write_tensors(self, file, tensors):
        self.begun.set()
        assert self.may.wait(30)
        super().write_tensors(file, tensors)


@pytest.mark.parametrize("step", [1, 9])
def test_what_is_being_saved_is_not_pruned(tmp_path, step):
    """Of a step before or after the newest that is there, such as one of an earlier run."""
    checkpoints = CheckpointFolder(tmp_path, keep=1)
    with pipeline(model(), ranks=1) as pipe:
        pipe.save(checkpoints.path(5))
        pipe._checkpoints.disk = disk = Waiting()
        saved = pipe.save(checkpoints.path(step), wait=False)
        assert disk.begun.wait(30)
        checkpoints.prune()
        disk.may.set()
        assert saved.wait() == checkpoints.path(step)


def test_what_was_never_finished_is_pruned_after_the_next_save(tmp_path):
    """As saves come one after another, it cannot be under way then."""
    checkpoints = CheckpointFolder(tmp_path, keep=3)
    with pipeline(model(), ranks=1) as pipe:
        pipe.save(checkpoints.path(5))
        left = checkpoints.path(2).with_name("step-00000002.partial-1234")
        left.mkdir()
        checkpoints.prune()
        assert left.exists()
        long_ago_ns = (checkpoints.path(5) / "manifest.json").stat().st_mtime_ns
        os.utime(left, ns=(long_ago_ns, long_ago_ns - 1))
        pipe.save(checkpoints.path(6))
    checkpoints.prune()
    assert not left.exists()


def test_what_another_process_removes_meanwhile_is_not_whole(tmp_path):
    """A file that goes between two looks at it is refused like one that was not there."""
    gone = _Gone(CheckpointFolder(tmp_path).path(1))
    with pytest.raises(CheckpointError, match="is missing: the checkpoint is not whole"):
        check_presence(gone, {"model-rank0-1.safetensors": None})
    with pytest.raises(CheckpointError, match="step-00000001 cannot be read: No such file"):
        check_presence(gone, {})


class _Gone:
    """A folder whose files are there when asked for, and gone when looked at."""

    def __init__(self, folder):
        self.folder = folder

    def __truediv__(self, name):
        return _GoneFile(self.folder / name)

    def __str__(self):
        return str(self.folder)

    def glob(self, pattern):
        raise FileNotFoundError(2, "No such file or directory", pattern)


class _GoneFile:
    def __init__(self, path):
        self.path = path

    def __str__(self):
        return str(self.path)

    def is_file(self):
        return True

    def stat(self):
        raise FileNotFoundError(2, "No such file or directory")


def test_other_kinds_of_numbers_are_refused_before_anything_changes(tmp_path):
    """Though the tensors before it could have been filled."""

    class Counted(nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.linear = nn.Linear(6, 3)
            self.register_buffer("count", torch.zeros(1, dtype=kind))

        def forward(self, batch):
            return self.linear(batch[0] if isinstance(batch, tuple) else batch)

    saved = Counted(torch.float32)
    with pipeline(nn.Sequential(saved), ranks=1) as pipe:
        pipe.save(tmp_path / "c")
    plain = nn.Sequential(Counted(torch.int64))
    before = copy.deepcopy(plain.state_dict())
    with pytest.raises(CheckpointError, match=r"0\.count is F32 in the file and torch\.int64"):
        load_into(plain, tmp_path / "c")
    assert differing(plain.state_dict(), before) == []


def test_tied_weights_that_differ_are_refused_before_anything_changes(tmp_path):
    """A checkpoint of a model where they were not tied."""
    sample, tied = SAMPLES["gpt_untied"](), SAMPLES["gpt_tied"]().model
    with torch.no_grad():
        for parameter in sample.model.parameters():
            parameter.add_(1.0)
    kwargs = {"example": sample.batch, "loss": sample.loss, "ranks": 2, "microbatches": 2}
    with it.Pipeline(sample.model, **kwargs) as pipe:
        pipe.save(tmp_path / "c")
    before = copy.deepcopy(tied.state_dict())
    with pytest.raises(CheckpointError, match="are tied in the model and differ in the file"):
        load_into(tied, tmp_path / "c")
    assert differing(tied.state_dict(), before) == []


def test_an_optimizers_state_that_cannot_be_read_changes_nothing(tmp_path, monkeypatch):
    """It is read before the model is filled."""
    with pipeline(model(), ranks=1) as pipe:
        pipe.save(tmp_path / "c", optimizer=adamw(pipe.parameters()))
    plain = model()
    with torch.no_grad():
        plain[3].weight.add_(1.0)
    before = copy.deepcopy(plain.state_dict())

    def broken(*_):
        msg = "it cannot be read"
        raise CheckpointError(msg)

    monkeypatch.setattr(loading.Checkpoint, "optimizer_tensors", broken)
    with pytest.raises(CheckpointError, match="it cannot be read"):
        load_into(plain, tmp_path / "c", adamw(plain.parameters()))
    assert differing(plain.state_dict(), before) == []
