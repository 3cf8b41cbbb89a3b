"""Processes save and load what threads, and the plain model, load and save."""

import os
import signal
from pathlib import Path

import pytest
import torch
from processes import run_ranks

from checkpoint_runs import adamw, batches, differing, model, pipeline, train
from intandem.checkpoint import CheckpointFolder, read_state
from intandem.checkpoint.disk import RealDisk
from intandem.errors import CheckpointError, PipelineError


class Broken(RealDisk):
    """A disk that does to rank 1 what ``fault`` says."""

    def __init__(self, fault):
        self.fault = fault

    def write_tensors(self, file, tensors):
        if torch.distributed.get_rank() == 1:
            if self.fault == "SIGKILL":
                os.kill(os.getpid(), signal.SIGKILL)
            msg = "no space left on device"
            raise OSError(msg)
        super().write_tensors(file, tensors)


def on_two_ranks(root):
    """Go on from step 2, save step 3 in the background, fail to save step 4, and save step 5."""
    checkpoints, some = CheckpointFolder(root), batches(5)
    said = []
    with pipeline(model()) as pipe:
        optimizer = adamw(pipe.parameters())
        pipe.load(checkpoints.path(2), optimizer=optimizer)
        losses = train(pipe, optimizer, some[2:3])
        saved = pipe.save(checkpoints.path(3), optimizer=optimizer, wait=False)
        losses += train(pipe, optimizer, some[3:4])
        saved.wait()
        real, pipe._checkpoints.disk = pipe._checkpoints.disk, Broken("OSError")
        for wait in (True, False):
            try:
                pipe.save(checkpoints.path(4), optimizer=optimizer, wait=wait).wait()
            except CheckpointError as error:
                said.append(str(error))
        pipe._checkpoints.disk = real
        left = sorted(path.name for path in Path(root).iterdir())
        losses += train(pipe, optimizer, some[4:])
        for directory, extra in (("elsewhere", {}), (checkpoints.path(5), object())):
            rank = torch.distributed.get_rank()
            try:
                pipe.save(
                    Path(root) / f"{directory}{rank}" if extra == {} else directory,
                    optimizer=optimizer,
                    extra={"bad": extra} if rank == 1 else {},
                )
            except CheckpointError as error:
                said.append(str(error))
        pipe.save(checkpoints.path(5), optimizer=optimizer, extra={"of": rank})
        checkpoints.prune()
    return {"losses": losses, "said": said, "left": left}


def test_from_threads_to_processes_and_back(tmp_path):
    """1 thread, 2 processes, then 1 and 3 threads: the losses and bits of one that never stopped.

    What fails on one rank is raised on all, names it, and leaves nothing.
    """
    root, results = tmp_path / "run", tmp_path / "results"
    results.mkdir()
    checkpoints, some, plain = CheckpointFolder(root), batches(6), model()
    with pipeline(plain, ranks=1) as pipe:
        optimizer = adamw(pipe.parameters())
        train(pipe, optimizer, some[:2])
        pipe.save(checkpoints.path(2), optimizer=optimizer)
        expected = train(pipe, optimizer, some[2:])
    for outcome in run_ranks(on_two_ranks, 2, results, str(root), timeout_s=110):
        assert outcome.code == 0, outcome.output[-3000:]
        assert outcome.value["losses"] == expected[:3]
        full, later, elsewhere, bad = outcome.value["said"]
        line, _, below = full.partition("\n")
        why = "OSError: no space left on device after 4 steps, in save()"
        said = f"step-00000004 was not saved: rank 1: {why} (traceback of rank 1 below)"
        assert line.endswith(said)
        assert below.startswith("Traceback")
        assert "in write_tensors" in below
        assert later == full
        assert "rank 0 has directory" in elsewhere
        assert "extra['bad'] is a object" in bad
        assert outcome.value["left"] == ["step-00000002", "step-00000003"]
    assert checkpoints.steps() == [2, 3, 5]
    assert read_state(checkpoints.path(5)).extra == {"of": 0}
    names = {path.name for path in checkpoints.path(3).glob("model-*")}
    assert names == {"model-rank0-1.safetensors", "model-rank1-1.safetensors"}
    for step, ranks in ((3, 1), (3, 3), (5, 3)):
        trained = model()
        with pipeline(trained, ranks=ranks) as pipe:
            optimizer = adamw(pipe.parameters())
            pipe.load(checkpoints.path(step), optimizer=optimizer)
            assert train(pipe, optimizer, some[step:]) == expected[step - 2 :]
        assert differing(trained.state_dict(), plain.state_dict()) == []


def killed_while_saving(root):
    """Rank 1 dies in the middle of a save; what rank 0 is told."""
    checkpoints = CheckpointFolder(root)
    pipe = pipeline(model())
    pipe.save(checkpoints.path(1))
    pipe._checkpoints.disk = Broken("SIGKILL")
    try:
        pipe.save(checkpoints.path(2))
    except PipelineError as error:
        told = [type(error).__name__, str(error)]
    return [*told, str(checkpoints.latest()), checkpoints.steps()]


@pytest.mark.timeout(150)
def test_a_rank_that_is_killed_while_saving(tmp_path):
    """The others name it, and the checkpoint before is the newest."""
    results = tmp_path / "results"
    results.mkdir()
    root = tmp_path / "run"
    first, second = run_ranks(killed_while_saving, 2, results, str(root), timeout_s=110)
    assert second.code == -signal.SIGKILL
    assert first.value is not None, first.output[-3000:]
    assert first.value[0] == "PeerFailureError", first.value
    assert "rank 1" in first.value[1]
    assert first.value[2:] == [str(CheckpointFolder(root).path(1)), [1]]


def told_on_one_rank_alone(root):
    """A save in the background fails; rank 0 alone waits for it, and all make the next call."""
    checkpoints, said = CheckpointFolder(root), []
    with pipeline(model()) as pipe:
        real, pipe._checkpoints.disk = pipe._checkpoints.disk, Broken("OSError")
        saved = pipe.save(checkpoints.path(1), wait=False)
        if torch.distributed.get_rank() == 0:
            with pytest.raises(CheckpointError, match="step-00000001 was not saved"):
                saved.wait()
        pipe._checkpoints.disk = real
        try:
            pipe.save(checkpoints.path(2))
        except CheckpointError as error:
            said.append(str(error))
        pipe.save(checkpoints.path(3))
    return said


def test_what_one_rank_was_told_is_raised_on_all(tmp_path):
    """By the same call, so that none waits for another; then saving goes on."""
    results = tmp_path / "results"
    results.mkdir()
    root = tmp_path / "run"
    for outcome in run_ranks(told_on_one_rank_alone, 2, results, str(root), timeout_s=110):
        assert outcome.code == 0, outcome.output[-3000:]
        assert ["step-00000001 was not saved" in text for text in outcome.value] == [True]
    assert CheckpointFolder(root).steps() == [3]
