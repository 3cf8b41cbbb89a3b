"""Tables in Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table; a cell of None is left empty.

    Raises:
        ValueError: if a row has another number of cells than the header.
    """
    lines = [_line(header), "|" + "---|" * len(header)]
    for row in rows:
        if len(row) != len(header):
            msg = f"a row of {len(row)} cells under {len(header)} headings: {row!r}"
            raise ValueError(msg)
        lines.append(_line(row))
    return "\n".join(lines)


def _line(cells: Sequence[object]) -> str:
    return "|" + "|".join("" if cell is None else str(cell) for cell in cells) + "|"
