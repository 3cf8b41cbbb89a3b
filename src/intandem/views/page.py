"""What all our HTML pages have in common: the frame, headline numbers and legends."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING

from intandem.views.colors import LOOKS, drawing_style, ink
from intandem.views.passes import darker_note

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from intandem.ir import Timeline


def page_html(title: str, subtitle: str, main: str, environment: str = "") -> str:
    """Return one HTML page that needs nothing else, light or dark as the reader's system is.

    It is complete without its script, which adds details on hover and focus, zoom, and the switch
    between light and dark.

    Args:
        title: of the page; escaped, as is the subtitle.
        subtitle: beside it.
        main: HTML of the sections.
        environment: HTML of the footer.
    """
    return Template(_resource("report.html")).substitute(
        title=escape(title),
        subtitle=escape(subtitle, quote=False),
        style=_style(),
        script=_resource("report.js"),
        main=main,
        environment=environment,
    )


def clock_heading(note: str) -> str:
    """Heading of the drawings that share a clock, with the button that zooms them all."""
    button = '<button id="zoom" type="button" data-level="1" hidden>Zoom 1&times;</button>'
    return f"<h2>One step on the clock <small>{note}</small>{button}</h2>"


def facts_html(facts: Iterable[tuple[str, str, str]]) -> str:
    """Headline numbers: name, value and note of each, as HTML; empty without any."""
    cells = "\n".join(
        f"<div><dt>{name}</dt><dd>{value} <small>{note}</small></dd></div>"
        for name, value, note in facts
    )
    return f'<dl class="facts">\n{cells}\n</dl>' if cells else ""


def legend_html(timelines: Sequence[Timeline], *, more: str = "", note: str = "") -> str:
    """Kinds that occur in ``timelines`` or in ``more``, what a darker shade says, and a note."""
    present = {str(span.action.kind) for timeline in timelines for span in timeline.spans}
    items = (
        f'<li><i class="{letter}" aria-hidden="true">{letter}</i>{look.name}</li>'
        for letter, look in LOOKS.items()
        if letter in present | set(more)
    )
    notes = "<li>numbers are micro-batches</li>"
    if darker := darker_note(timelines):
        notes += f"<li>{darker}</li>"
    if note:
        notes += f'<li><i class="under" aria-hidden="true"></i>{note}</li>'
    return f'<ul class="legend">{"".join(items)}{notes}</ul>'


def _resource(name: str) -> str:
    return (files("intandem.views") / name).read_text(encoding="utf-8")


def _style() -> str:
    swatches = (
        f".legend .{letter} {{ background: {look.color}; color: {ink(look.color)}; }}"
        for letter, look in LOOKS.items()
    )
    return "\n".join((drawing_style(), _resource("report.css"), *swatches))
