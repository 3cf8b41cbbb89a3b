"""A crash before every operation of a save leaves the newest whole checkpoint, and it loads.

The disk forgets what was not synced: files are cut short, names are gone, a rename is undone.
"""

import shutil

import pytest

from checkpoint_runs import adamw, batches, differing, model, pipeline, train
from intandem.checkpoint import CheckpointFolder, read_state
from intandem.checkpoint.disk import RealDisk
from intandem.checkpoint.loading import Checkpoint


class Crash(BaseException):
    """The machine is off."""


class ForgetfulDisk:
    """The real disk, until the machine stops before operation ``crash_before``.

    Args:
        crash_before: number of the operation, from 1; None for never.
        undoes: whether a rename that was not synced is undone.
    """

    def __init__(self, crash_before=None, *, undoes=True):
        self.real = RealDisk()
        self.crash_before, self.undoes = crash_before, undoes
        self.operations = []
        self.files, self.names, self.renames = set(), set(), []

    def begin(self, what, path):
        self.operations.append(f"{what} {path.name}")
        if len(self.operations) == self.crash_before:
            self.crash()
            raise Crash(self.operations[-1])

    def crash(self):
        for file in self.files:
            content = file.read_bytes()
            file.write_bytes(content[: len(content) // 2])
        for path in self.names:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        if self.undoes:
            for source, target in self.renames:
                if target.exists():
                    target.rename(source)

    def make_folder(self, folder):
        self.begin("make_folder", folder)
        self.real.make_folder(folder)
        self.names.add(folder)

    def write(self, file, content):
        self.begin("write", file)
        self.real.write(file, content)
        self.files.add(file)
        self.names.add(file)

    def write_tensors(self, file, tensors):
        self.begin("write_tensors", file)
        self.real.write_tensors(file, tensors)
        self.files.add(file)
        self.names.add(file)

    def sync(self, path):
        self.begin("sync", path)
        self.real.sync(path)
        self.files.discard(path)
        if path.is_dir():
            self.names = {name for name in self.names if name.parent != path}
            self.renames = [pair for pair in self.renames if pair[1].parent != path]

    def rename(self, source, target):
        self.begin("rename", source)
        self.real.rename(source, target)
        self.renames.append((source, target))
        self.names.discard(source)

        def moved(path):
            return target / path.relative_to(source) if path.is_relative_to(source) else path

        self.files = {moved(path) for path in self.files}
        self.names = {moved(path) for path in self.names}

    def remove(self, folder):
        self.begin("remove", folder)
        self.real.remove(folder)


@pytest.fixture(scope="module")
def trained():
    """A pipeline after a step, and its optimizer; its checkpoints have several files each."""
    with pipeline(model(), ranks=2) as pipe:
        pipe._checkpoints.max_shard_bytes = 500
        optimizer = adamw(pipe.parameters())
        train(pipe, optimizer, batches(1))
        yield pipe, optimizer


def save(trained, path, disk):
    pipe, optimizer = trained
    pipe._checkpoints.disk = disk
    pipe.save(path, optimizer=optimizer, extra={"name": path.name})


def check_folder(checkpoints, state):
    """What has a checkpoint's name is whole; the newest is equal to what was saved."""
    for path in checkpoints.root.glob("step-????????"):
        Checkpoint(path).check_content()
    latest = checkpoints.latest()
    found = read_state(latest)
    assert found.extra == {"name": latest.name}
    assert differing(found.model, state) == []
    return latest


@pytest.mark.parametrize("undoes", [True, False])
def test_before_every_operation(trained, tmp_path, undoes):
    """Until the folder has its name, the older checkpoint is the newest; afterwards this is."""
    checkpoints, state = CheckpointFolder(tmp_path / "run"), trained[0].state_dict()
    old, new = checkpoints.path(1), checkpoints.path(2)
    save(trained, old, RealDisk())
    save(trained, checkpoints.path(9), counting := ForgetfulDisk())
    shutil.rmtree(checkpoints.path(9))
    kinds = [operation.split()[0] for operation in counting.operations]
    assert kinds.count("write_tensors") >= 4
    assert kinds[-2:] == ["rename", "sync"]
    for point in range(1, 2 * len(kinds)):
        disk = ForgetfulDisk(point, undoes=undoes)
        try:
            save(trained, new, disk)
        except Crash:
            is_named = "rename" in [o.split()[0] for o in disk.operations[:-1]]
            assert check_folder(checkpoints, state) == (new if is_named and not undoes else old)
            assert len(list(checkpoints.root.iterdir())) <= 3  # of earlier crashes nothing is left
            shutil.rmtree(new, ignore_errors=True)
        else:
            disk.crash()
            break
    assert point > len(kinds)
    assert check_folder(checkpoints, state) == new
    assert {path.name for path in checkpoints.root.iterdir()} == {old.name, new.name}


def test_the_first_checkpoint(trained, tmp_path):
    """Folders that are made on the way are there after a crash, too, once the save is over."""
    checkpoints = CheckpointFolder(tmp_path / "runs" / "one")
    disk = ForgetfulDisk()
    save(trained, checkpoints.path(1), disk)
    disk.crash()
    assert check_folder(checkpoints, trained[0].state_dict()) == checkpoints.path(1)


def test_while_pruning(trained, tmp_path):
    """What is removed is never there in part under its own name."""
    checkpoints, state = CheckpointFolder(tmp_path), trained[0].state_dict()
    for step in (1, 2, 3):
        save(trained, checkpoints.path(step), RealDisk())
    point = 0
    while len(checkpoints.steps()) > 1:
        point += 1
        try:
            CheckpointFolder(tmp_path, keep=1, disk=ForgetfulDisk(point, undoes=False)).prune()
        except Crash:
            assert check_folder(checkpoints, state) == checkpoints.path(3)
    assert point > 1
