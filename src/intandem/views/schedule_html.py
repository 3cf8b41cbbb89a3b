"""One schedule, or several side by side, as one HTML page that needs nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from intandem.views.clock import Clock
from intandem.views.page import clock_heading, facts_html, legend_html, page_html
from intandem.views.timeline_svg import activations_svg, timeline_svg

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intandem.views.panel import Panel
    from intandem.views.report import StepFunction


@dataclass(frozen=True, slots=True)
class Table:
    """Figures of several schedules.

    Attributes:
        headings: of the columns; the first is the name.
        rows: cells of each.
        notes: paragraphs below.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def schedule_html(
    panel: Panel,
    *,
    title: str,
    facts: Sequence[tuple[str, str, str]],
    activations: Sequence[StepFunction],
) -> str:
    """Return a page of one timeline.

    Args:
        panel: the timeline; its name starts the ids of boxes, its figures are shown above it.
        title: of the page; escaped, as is every other text.
        facts: name, value and note of each headline number.
        activations: by rank, the stage activations held over time, on the timeline's clock.
    """
    clock = Clock(panel.timeline.makespan_s)
    curves, start_s = {"simulated": activations}, {"simulated": panel.timeline.start_s}
    held = activations_svg(curves, clock, start_s=start_s)
    main = [
        facts_html([(escape(name), escape(value), escape(note)) for name, value, note in facts]),
        _clock_section("one row per rank", [panel], clock),
        "<section>",
        "<h2>Activations held <small>of a micro-batch and a stage, on each rank</small></h2>",
        f'<div class="scroll clock">{held}</div>',
        "</section>",
    ]
    return page_html(title, "", "\n".join(main))


def comparison_html(panels: Sequence[Panel], table: Table, *, title: str, length_s: float) -> str:
    """Return a page of several timelines on one time scale, below a table.

    Args:
        panels: at least one, each of another name.
        table: of their figures.
        title: of the page; escaped, as is every other text.
        length_s: seconds that the drawings show at most.
    """
    main = [_table(table), _clock_section("same time scale", panels, Clock(length_s))]
    return page_html(title, "", "\n".join(main))


def _clock_section(note: str, panels: Sequence[Panel], clock: Clock) -> str:
    legend = legend_html([panel.timeline for panel in panels])
    figures = (_figure(panel, clock) for panel in panels)
    return "\n".join(["<section>", clock_heading(note), legend, *figures, "</section>"])


def _figure(panel: Panel, clock: Clock) -> str:
    name = escape(panel.name)
    caption = f"<figcaption>{name} <small>{escape(panel.figures)}</small></figcaption>\n"
    drawing = timeline_svg(panel.timeline, clock, name=name)
    said = caption if panel.figures else ""
    return f'<figure>{said}<div class="scroll clock">{drawing}</div></figure>'


def _table(table: Table) -> str:
    heads = _cells("th", table.headings, ' scope="col"')
    body = "\n".join(f"<tr>{_cells('td', row)}</tr>" for row in table.rows)
    notes = "\n".join(f"<p>{escape(note)}</p>" for note in table.notes)
    return (
        f'<section>\n<div class="scroll"><table>\n<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>\n{notes}\n</section>"
    )


def _cells(tag: str, texts: Sequence[str], attributes: str = "") -> str:
    """Cells of a row; the first is a name, the others are numbers."""
    looks = (' class="text"', *[""] * (len(texts) - 1))
    return "".join(
        f"<{tag}{attributes}{look}>{escape(text)}</{tag}>"
        for text, look in zip(texts, looks, strict=True)
    )
