"""A folder that is whole or not there: made beside its place under another name, then renamed.

Operations, in order: every file written and synced; the folder synced; the folder renamed; the
folder that it is in synced. A crash before the rename leaves a folder that nothing takes for
finished, and the next save of the same name removes it.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from intandem.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from intandem.checkpoint.disk import Disk

PARTIAL = ".partial-"
"""What is between a folder's name and a random text while it is being written."""


def begin(disk: Disk, target: Path) -> Path:
    """Make the folder that is to become ``target``, and return it.

    Raises:
        CheckpointError: if there is a ``target`` with content.
    """
    refuse_existing(target)
    _make_parents(disk, target.parent)
    for left in sorted(target.parent.glob(f"{_escaped(target.name)}{PARTIAL}*")):
        disk.remove(left)
    partial = target.with_name(f"{target.name}{PARTIAL}{secrets.token_hex(4)}")
    disk.make_folder(partial)
    return partial


def refuse_existing(target: Path) -> None:
    """Refuse to write over something.

    Raises:
        CheckpointError: if ``target`` is there and no empty folder.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        msg = f"{target} is there already; save under another name, or remove it first"
        raise CheckpointError(msg)


def finish(disk: Disk, partial: Path, target: Path, files: Mapping[str, bytes]) -> None:
    """Write the last files, which say what all others are, and give the folder its name."""
    for name, content in files.items():
        disk.write(partial / name, content)
        disk.sync(partial / name)
    disk.sync(partial)
    disk.rename(partial, target)
    disk.sync(target.parent)


def remove(disk: Disk, target: Path) -> None:
    """Remove a folder so that it is never there in part under its own name."""
    partial = target.with_name(f"{target.name}{PARTIAL}removed-{secrets.token_hex(4)}")
    try:
        disk.rename(target, partial)
    except FileNotFoundError:
        return  # another process was faster
    disk.remove(partial)


def _make_parents(disk: Disk, folder: Path) -> None:
    if folder.is_dir():
        return
    _make_parents(disk, folder.parent)
    disk.make_folder(folder)
    disk.sync(folder.parent)


def _escaped(name: str) -> str:
    """Return a pattern for ``glob`` that is this name."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
