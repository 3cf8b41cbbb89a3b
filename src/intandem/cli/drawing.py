"""A schedule on the terminal: title, drawing and figures."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

from intandem.views.text import legend_ansi, timeline_ansi, timeline_text

if TYPE_CHECKING:
    from intandem.cli.figures import Shown


LEAST_COLUMNS = 40
"""Of a drawing."""


def check_columns(asked: int | None) -> None:
    """Find out before anything is computed whether there is room for a drawing.

    Raises:
        ValueError: if there is not.
    """
    if asked is not None and asked < LEAST_COLUMNS:
        msg = f"--columns is {asked}, which is too few for a drawing; use {LEAST_COLUMNS} or more"
        raise ValueError(msg)


def columns_of(asked: int | None) -> int:
    """Return the columns asked for, or those of the terminal."""
    return asked or max(LEAST_COLUMNS, shutil.get_terminal_size((110, 24)).columns)


def shown_text(shown: Shown, columns: int) -> str:
    """Return title, drawing and figures, in colour where standard output is a terminal."""
    if sys.stdout.isatty():
        legend = f"   {legend_ansi(shown.timeline)}"
        drawing = timeline_ansi(shown.timeline, columns=columns)
    else:
        legend, drawing = "", timeline_text(shown.timeline, columns=columns)
    figures = "\n".join(f"{name:<13} {value}, {note}" for name, value, note in shown.facts())
    return f"{shown.title}{legend}\n\n{drawing}\n\n{figures}"
