"""How every command reads its arguments: a dataclass in, a value or an exit status out."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import tyro

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")


def parse_arguments(kind: type[T], argv: Sequence[str], *, command: str, about: str) -> T | int:
    """Read ``argv`` as the fields of ``kind``.

    Returns:
        The value, or the exit status: 0 after help was printed, 2 after an error was.
    """
    try:
        return tyro.cli(kind, args=list(argv), prog=f"intandem {command}", description=about)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
