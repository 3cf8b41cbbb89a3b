"""Everything that writing a checkpoint does to the file system, one operation at a time.

What is done between two operations survives no crash, so a test that crashes before each of them
has tried every way in which a save can be cut short.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Protocol

from safetensors.torch import save_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor


class Disk(Protocol):
    """Writes. What is written, made or renamed is on the disk for certain once it is synced."""

    def make_folder(self, folder: Path) -> None:
        """Make a folder in one that is there."""
        ...

    def write(self, file: Path, content: bytes) -> None:
        """Write a new file."""
        ...

    def write_tensors(self, file: Path, tensors: Mapping[str, Tensor]) -> None:
        """Write a new safetensors file of contiguous tensors in host memory."""
        ...

    def sync(self, path: Path) -> None:
        """Return once a file's content, or a folder's list of names, is on the disk."""
        ...

    def rename(self, source: Path, target: Path) -> None:
        """Give a folder another name, at once; one without content may have the name."""
        ...

    def remove(self, folder: Path) -> None:
        """Remove a folder and what is in it, as far as it is there."""
        ...


class RealDisk:
    """The file system of this machine; see ``Disk``."""

    def make_folder(self, folder: Path) -> None:
        """Make a folder; one that another process has made meanwhile will do."""
        folder.mkdir(exist_ok=True)

    def write(self, file: Path, content: bytes) -> None:
        """Write a new file."""
        with file.open("xb") as opened:
            opened.write(content)

    def write_tensors(self, file: Path, tensors: Mapping[str, Tensor]) -> None:
        """Write a safetensors file, without Python's lock. ``transformers`` asks for the format."""
        save_file(dict(tensors), file, metadata={"format": "pt"})
        file.chmod(file.parent.stat().st_mode & 0o666)  # safetensors lets nobody else read it

    def sync(self, path: Path) -> None:
        """Have the operating system write what it still holds of a file or folder."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Rename as POSIX does: at once, and never onto a folder with content."""
        source.rename(target)

    def remove(self, folder: Path) -> None:
        """Remove a folder; what another process removes meanwhile is gone all the same."""
        shutil.rmtree(folder, ignore_errors=True)
