"""What a process writes of a checkpoint, and how all of them together make it whole.

Every tensor is written once, by the process that answers for it. Each process reports what it has
written; rank 0 writes the manifest and gives the folder its name, or, if any has failed, removes
it; all are told what came of it.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from msgspec import Struct, structs
from torch import nn

from intandem.checkpoint.commit import finish
from intandem.checkpoint.manifest import (
    DIGEST,
    MANIFEST,
    File,
    Manifest,
    OptimizerState,
    digest_line,
    encode,
    merged_groups,
)
from intandem.checkpoint.shards import split, write_shards
from intandem.checkpoint.tensors import registered
from intandem.errors import CheckpointError
from intandem.runtime.verdict import traceback_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from intandem.checkpoint.disk import Disk
    from intandem.pipeline.assembly import Assembly
    from intandem.pipeline.meeting import Meeting

_log = logging.getLogger(__name__)


class Report(Struct, frozen=True):
    """What one process has written, or what kept it from that.

    Attributes:
        error: in a line, or None.
        traceback: of an error that is none of ours, or empty.
        model: files of parameters and buffers.
        optimizer: its state and files.
    """

    error: str | None = None
    traceback: str = ""
    model: dict[str, File] = {}
    optimizer: OptimizerState | None = None


class Content(NamedTuple):
    """What a process is to write.

    Attributes:
        model: parameters and buffers that it answers for.
        state: of its optimizers, without files; None without one.
        state_tensors: those that ``state`` names.
        is_snapshot: whether all of them are copies that nothing changes.
    """

    model: dict[str, Tensor]
    state: OptimizerState | None
    state_tensors: dict[str, Tensor]
    is_snapshot: bool


def answered_for(model: nn.Module, assembly: Assembly) -> dict[str, Tensor]:
    """Return the tensors of the model's state that this process writes, by first name.

    A parameter is its first holder's, a buffer that of the rank that updates it, or rank 0's.

    Raises:
        CheckpointError: if a module has state of its own kind.
    """
    for name, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            msg = (
                f"{name or type(module).__name__} has a get_extra_state(), which a checkpoint "
                "does not hold; save what it returns in extra="
            )
            raise CheckpointError(msg)
    own, found = set(assembly.home.own_ranks), {}
    for name, one in registered(model).items():
        if one.persistent:
            if one.is_parameter:
                writer = assembly.holders_of.get(name, (0,))[0]
            else:
                updaters = (assembly.updater_of[n] for n in one.names if n in assembly.updater_of)
                writer = next(updaters, 0)
            if writer in own:
                found[name] = one.tensor
    return found


def tied_names(model: nn.Module) -> dict[str, str]:
    """Return the other names of tensors that are saved under their first."""
    state = {name: one for name, one in registered(model).items() if one.persistent}
    return {alias: name for name, one in state.items() for alias in one.names[1:]}


def write_own(
    disk: Disk, folder: Path, content: Content, stem: str, max_shard_bytes: int
) -> Report:
    """Write what this process is to write.

    Args:
        disk: does it.
        folder: to write into.
        content: what.
        stem: what tells this process's files from others'.
        max_shard_bytes: size of files.
    """

    def written(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, File]:
        shards = split(tensors, max_shard_bytes)
        files = {f"{kind}-{stem}-{i}.safetensors": names for i, names in enumerate(shards, 1)}
        return write_shards(disk, folder, files, tensors, is_snapshot=content.is_snapshot)

    model = written("model", content.model)
    if content.state is None:
        return Report(model=model)
    files = written("optimizer", content.state_tensors)
    return Report(model=model, optimizer=structs.replace(content.state, files=files))


def merged(manifest: Manifest, reports: Sequence[Report], expected: set[str]) -> Manifest:
    """Return the manifest of what all processes have written.

    Raises:
        CheckpointError: if some tensor has been written by none, or by two.
    """
    model: dict[str, File] = {}
    for report in reports:
        model.update(report.model)
    written = [name for file in model.values() for name in file.tensors]
    if missing := sorted(expected.symmetric_difference(written)):
        msg = f"{missing[0]} and {len(missing) - 1} others were not written as they should be"
        raise CheckpointError(msg)
    states = [report.optimizer for report in reports if report.optimizer is not None]
    optimizer = None
    if states:
        optimizer = OptimizerState(
            next((state.kind for state in states if state.kind), ""),
            merged_groups([group for state in states for group in state.groups]),
            {name: tree for state in states for name, tree in state.state.items()},
            {name: file for state in states for name, file in state.files.items()},
        )
    found = structs.replace(manifest, model=model, optimizer=optimizer)
    if problem := next(found.problems(), None):
        raise CheckpointError(problem)
    return found


def last_files(manifest: Manifest, expected: set[str]) -> Callable[[Sequence[Report]], Any]:
    """Return what makes the files that a checkpoint ends with of the reports."""

    def files(reports: Sequence[Report]) -> dict[str, bytes]:
        content = encode(merged(manifest, reports, expected))
        return {MANIFEST: content, DIGEST: digest_line(content)}

    return files


class Place(NamedTuple):
    """Where a folder is being written.

    Attributes:
        disk: that does it.
        partial: its name until it is whole.
        target: its name from then on.
        at: step and call, as an error tells them.
    """

    disk: Disk
    partial: Path
    target: Path
    at: str


def write_together(
    meeting: Meeting,
    number: int,
    place: Place,
    write: Callable[[], Report],
    last: Callable[[Sequence[Report]], Mapping[str, bytes]],
) -> Path:
    """Write this process's part, and return once the whole has its name.

    Args:
        meeting: of all processes.
        number: how many saves this pipeline has begun.
        place: where to.
        write: writes this process's part.
        last: makes the last files of everyone's reports; called by rank 0.

    Raises:
        CheckpointError: if any process has failed; the folder is gone then, on every process.
        PeerFailureError: if the run has ended.
    """
    try:
        own = write()
    except Exception as error:  # any: the others wait for a report
        _log.warning("cannot save %s: %s", place.target, error)
        own = _failed(error, place.at)

    def conclude(reports: list[bytes]) -> bytes:
        try:
            found = [msgspec.json.decode(report, type=Report) for report in reports]
            problem = _errors_of(found)
            if not problem:
                finish(place.disk, place.partial, place.target, last(found))
        except Exception as error:  # any: the others wait for the end
            problem = _errors_of([_failed(error, place.at)])
        if problem:
            with suppress(OSError):
                place.disk.remove(place.partial)
        return problem.encode()

    told = meeting.conclude(f"saves/{number}", msgspec.json.encode(own), conclude)
    if told:
        msg = f"{place.target} was not saved: {told.decode()}"
        raise CheckpointError(msg)
    return place.target


def _failed(error: Exception, at: str) -> Report:
    """What a process reports that could not write its part."""
    line = in_words(error).partition("\n")[0]
    of_ours = isinstance(error, CheckpointError)
    return Report(error=f"{line} {at}", traceback="" if of_ours else traceback_of(error))


def _errors_of(reports: Sequence[Report]) -> str:
    """Return what kept processes from writing: a line for all, and the first one's traceback.

    Nothing if nothing did.
    """
    failed = {rank: report for rank, report in enumerate(reports) if report.error}
    line = "; ".join(f"rank {rank}: {report.error}" for rank, report in failed.items())
    for rank, report in failed.items():
        if report.traceback:
            return f"{line} (traceback of rank {rank} below)\n{report.traceback}"
    return line


def in_words(error: Exception) -> str:
    """Return an error as other processes are told of it."""
    is_ours = isinstance(error, CheckpointError)
    return str(error) if is_ours else f"{type(error).__name__}: {error}"
