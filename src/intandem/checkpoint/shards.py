"""Files of tensors: written, and held against what the manifest says of them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open

from intandem.checkpoint.manifest import File
from intandem.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from intandem.checkpoint.disk import Disk

MAX_SHARD_BYTES = 2**30
"""Files are no larger, but for single tensors that are."""


def snapshot(tensor: Tensor) -> Tensor:
    """Return a copy in host memory, of its own and contiguous."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu").copy_(tensor.detach())


def split(tensors: Mapping[str, Tensor], max_bytes: int) -> list[list[str]]:
    """Return the names of the tensors of each shard, in order: as few as fill up in turn."""
    shards: list[list[str]] = []
    room = 0
    for name, tensor in tensors.items():
        num_bytes = tensor.numel() * tensor.element_size()
        if not shards or num_bytes > room:
            shards.append([])
            room = max_bytes
        shards[-1].append(name)
        room -= num_bytes
    return shards


def write_shards(
    disk: Disk,
    folder: Path,
    files: Mapping[str, Sequence[str]],
    tensors: Mapping[str, Tensor],
    *,
    is_snapshot: bool,
) -> dict[str, File]:
    """Write and sync files of tensors.

    Args:
        disk: does it.
        folder: for the files.
        files: the tensors of each.
        tensors: by name.
        is_snapshot: whether ``tensors`` are from ``snapshot``; else they are copied file by file.

    Raises:
        CheckpointError: if a tensor is of a kind that safetensors does not hold.
    """
    written: dict[str, File] = {}
    for name, names in files.items():
        path = folder / name
        held = {n: tensors[n] if is_snapshot else snapshot(tensors[n]) for n in names}
        try:
            disk.write_tensors(path, held)
        except (SafetensorError, ValueError, RuntimeError, KeyError, TypeError) as error:
            msg = f"{path} cannot be written: {type(error).__name__}: {error}"
            raise CheckpointError(msg) from error
        disk.sync(path)
        written[name] = File(path.stat().st_size, sha256_of(path), tuple(names))
    return written


def sha256_of(path: Path) -> str:
    """Return the digest of a file's content."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def check_presence(folder: Path, files: Mapping[str, File]) -> None:
    """Look whether files are there and as long as they should be, and no others.

    Raises:
        CheckpointError: naming the first that is not as it should be.
    """
    for name, file in files.items():
        path = folder / name
        try:
            found = path.stat().st_size
        except OSError as error:  # one that another process is removing is not whole either
            msg = f"{path} is missing: the checkpoint is not whole ({error.strerror})"
            raise CheckpointError(msg) from error
        if found != file.num_bytes:
            msg = f"{path} is damaged: it has {found} bytes, expected {file.num_bytes}"
            raise CheckpointError(msg)
    try:
        present = sorted(folder.glob("*.safetensors"))
    except OSError as error:
        msg = f"{folder} cannot be read: {error.strerror}"
        raise CheckpointError(msg) from error
    for path in present:
        if path.name not in files:
            msg = f"{path} is no file of this checkpoint: its manifest does not name it"
            raise CheckpointError(msg)


def check_content(folder: Path, files: Mapping[str, File], names: Iterable[str]) -> None:
    """Look whether the named files have the content they were written with.

    Raises:
        CheckpointError: naming the first that has not.
    """
    for name in names:
        try:
            found = sha256_of(folder / name)
        except OSError as error:
            msg = f"{folder / name} cannot be read: {error}"
            raise CheckpointError(msg) from error
        if found != files[name].sha256:
            msg = (
                f"{folder / name} is damaged: its sha256 is {found[:16]}..., and the manifest "
                f"says {files[name].sha256[:16]}..."
            )
            raise CheckpointError(msg)


def read_tensors(folder: Path, files: Mapping[str, File], wanted: set[str]) -> dict[str, Tensor]:
    """Return copies of the wanted tensors, opening only files that hold some.

    Raises:
        CheckpointError: if one is not there.
    """
    found: dict[str, Tensor] = {}
    for name, file in files.items():
        if here := [key for key in file.tensors if key in wanted]:
            try:
                with safe_open(str(folder / name), framework="pt", device="cpu") as opened:
                    # what it gives are views of the mapped file, which may be deleted
                    found.update((key, opened.get_tensor(key).clone()) for key in here)
            except (SafetensorError, OSError) as error:
                msg = f"{folder / name} cannot be read: {error}"
                raise CheckpointError(msg) from error
    if absent := sorted(wanted - found.keys()):
        msg = f"{folder} has no tensor {absent[0]!r}, which its manifest names"
        raise CheckpointError(msg)
    return found
