"""Files as the commands read and write them: what goes wrong is one sentence with the name."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def read_text(path: Path, *, option: str = "") -> str:
    """Return the text of ``path``.

    Args:
        path: of a file in UTF-8.
        option: that it was given with, for the message.

    Raises:
        ValueError: if it is no such file.
        OSError: if it cannot be read.
    """
    name = f"{option} {path}".lstrip()
    if path.is_dir():
        msg = f"{name} is a folder; expected a file"
        raise ValueError(msg)
    if not path.exists():
        msg = f"{name}: there is no such file"
        raise ValueError(msg)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        where = f"byte {error.start} is 0x{error.object[error.start]:02x}"
        msg = f"{name} is not text in UTF-8 ({where}); save it as UTF-8"
        raise ValueError(msg) from None


def require_writable(path: Path, *, option: str) -> None:
    """Find out before the work is done whether its result can be written to ``path``.

    Raises:
        ValueError: if it cannot; says why, and names ``option``.
    """
    name, folder = f"{option} {path}", path.parent
    if path.is_dir():
        msg = f"{name} is a folder; expected the name of a file in it"
        raise ValueError(msg)
    if not folder.is_dir():
        msg = f"{name}: there is no folder {folder}; make it first"
        raise ValueError(msg)
    if not os.access(path if path.exists() else folder, os.W_OK):
        msg = f"{name} may not be written; choose another place"
        raise ValueError(msg)


def in_words(error: Exception) -> str:
    """Write ``error`` as a sentence, one of the operating system's without its number."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    return str(error)
