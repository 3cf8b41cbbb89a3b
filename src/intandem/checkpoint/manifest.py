"""What is in a checkpoint: everything but the tensors, and the files that those are in."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from intandem.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

MANIFEST = "manifest.json"
DIGEST = "manifest.json.sha256"
"""In the form that ``sha256sum --check`` reads."""

FORMAT = "intandem checkpoint"
VERSION = 1

_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\.safetensors")
_Count = Annotated[int, Meta(ge=0)]
_Tree = Any
"""JSON from ``trees.to_json``."""


class File(Struct, frozen=True, forbid_unknown_fields=True):
    """One file of tensors: its length, its digest, and what they are called in it."""

    num_bytes: _Count
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    tensors: tuple[str, ...]


class Group(Struct, frozen=True, forbid_unknown_fields=True):
    """A parameter group of an optimizer: its number there, options, and parameters by name."""

    index: _Count
    options: dict[str, _Tree]
    names: tuple[str, ...]


class OptimizerState(Struct, frozen=True, forbid_unknown_fields=True):
    """An optimizer: class, groups, state of each parameter by name, files of its tensors."""

    kind: str
    groups: tuple[Group, ...]
    state: dict[str, dict[str, _Tree]]
    files: dict[str, File]


class Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    """A checkpoint's content.

    Attributes:
        format: says that it is one.
        version: of the format.
        num_steps: training steps that the pipeline had made. With ``seed``, decides its draws.
        seed: of the pipeline's draws.
        num_ranks: of the pipeline that wrote it; any number can read it.
        model: files of parameters and buffers.
        tied: other names of tensors that are saved under one.
        optimizer: state by name; None if none was given.
        scaler: state of the gradient scaler, if there was one.
        extra: what the user gave.
    """

    format: Literal["intandem checkpoint"]
    version: Literal[1]
    num_steps: _Count
    seed: int
    num_ranks: Annotated[int, Meta(ge=1)]
    model: dict[str, File]
    tied: dict[str, str]
    optimizer: OptimizerState | None
    scaler: dict[str, _Tree] | None
    extra: _Tree

    def files(self) -> dict[str, File]:
        """Return all files of tensors by name."""
        return {**self.model, **(self.optimizer.files if self.optimizer else {})}

    def problems(self) -> Iterator[str]:
        """Yield what contradicts itself."""
        optimizer_files = self.optimizer.files if self.optimizer else {}
        for name in self.files():
            if not _FILE_NAME.fullmatch(name):
                yield f"{name!r} is no name of a file of tensors"
        if shared := self.model.keys() & optimizer_files.keys():
            yield f"{min(shared)} holds parameters and an optimizer's state"
        tensors = [name for file in self.model.values() for name in file.tensors]
        states = [name for file in optimizer_files.values() for name in file.tensors]
        groups = self.optimizer.groups if self.optimizer else ()
        named = [name for group in groups for name in group.names]
        for what, names in (("tensor", tensors), ("tensor", states), ("parameter", named)):
            if len(set(names)) < len(names):
                yield f"it has {what} {Counter(names).most_common(1)[0][0]!r} twice"
        known = set(tensors)
        for alias, name in self.tied.items():
            if alias in known or name not in known:
                yield f"{alias!r} cannot be another name of {name!r}"


def encode(manifest: Manifest) -> bytes:
    """Return the text form."""
    content = msgspec.to_builtins(manifest)
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def digest_line(content: bytes) -> bytes:
    """Return the content of the file of the manifest's own digest."""
    return f"{hashlib.sha256(content).hexdigest()}  {MANIFEST}\n".encode()


def decode(content: bytes, file: Path) -> Manifest:
    """Return the manifest whose text form is ``content``.

    Raises:
        CheckpointError: naming ``file``, and what in it is not as expected.
    """
    try:
        found = json.loads(content.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        msg = f"{file} is not JSON: {error}"
        raise CheckpointError(msg) from error
    version = found.get("version") if isinstance(found, dict) else None
    if version != VERSION and isinstance(version, int) and found.get("format") == FORMAT:
        msg = f"{file} is of version {version} of the format; this intandem reads {VERSION}"
        raise CheckpointError(msg)
    try:
        manifest = msgspec.convert(found, Manifest)
    except (msgspec.ValidationError, RecursionError) as error:
        msg = f"{file} is no manifest of a checkpoint: {error}"
        raise CheckpointError(msg) from error
    if problem := next(manifest.problems(), None):
        msg = f"{file} contradicts itself: {problem}"
        raise CheckpointError(msg)
    return manifest


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """Return the manifest of a checkpoint and its digest.

    Raises:
        CheckpointError: if it is not there, not whole, or of another version; names the file.
    """
    if not folder.is_dir():
        msg = f"there is no checkpoint {folder}"
        raise CheckpointError(msg)
    content, line = (_content(folder / name) for name in (MANIFEST, DIGEST))
    if line != digest_line(content):
        msg = f"{folder / MANIFEST} is damaged: it is not what {DIGEST} beside it says"
        raise CheckpointError(msg)
    return decode(content, folder / MANIFEST), line[:64].decode()


def merged_groups(groups: Sequence[Group]) -> tuple[Group, ...]:
    """Return groups of several ranks' optimizers with alike ones joined, in order."""
    found: dict[str, Group] = {}
    for group in sorted(groups, key=lambda group: group.index):
        key = json.dumps([group.index, group.options], sort_keys=True)
        names = (*found[key].names, *group.names) if key in found else group.names
        found[key] = Group(group.index, group.options, names)
    return tuple(found.values())


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        msg = f"{file} is missing: {file.parent} is no checkpoint, or was not finished"
        raise CheckpointError(msg) from None
    except OSError as error:
        msg = f"{file} cannot be read: {error}"
        raise CheckpointError(msg) from error


def _no_constant(text: str) -> Any:
    msg = f"{text} is no JSON"
    raise ValueError(msg)
