"""Steps on the clock as an SVG file of its own: title, figures, legend, rows and time axis."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from intandem.views import units
from intandem.views.clock import WIDTH, Clock
from intandem.views.colors import LOOKS, drawing_style
from intandem.views.panel import Panel
from intandem.views.passes import darker_note, passes_of
from intandem.views.timeline_svg import picture_svg, timeline_svg

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from intandem.ir import Timeline
    from intandem.ir.analysis import PathStep

MARGIN = 24
HEAD = 84
"""Height of title, figures and legend."""
PANEL_HEAD = 26
"""Height of the line above each timeline of several."""
LOW_ROW = 20
"""Height of a rank's row where several timelines are drawn."""

_STYLE = """
svg { --page: #ffffff; --ink: #1b1f24; --quiet: #57606a; --rule: #dfe3e8; --idle: #eceff2; }
@media (prefers-color-scheme: dark) {
  svg { --page: #15181c; --ink: #e4e7eb; --quiet: #98a2ad; --rule: #2d333a; --idle: #23282e; }
}
.page { fill: var(--page); }
svg .title { font-size: 17px; font-weight: 650; }
svg .panel { font-size: 13px; font-weight: 650; }
svg .figures, svg .legend text { fill: var(--quiet); font-size: 12.5px; font-weight: 400; }
"""


def timeline_svg_file(
    timeline: Timeline, *, title: str, figures: str = "", path: Sequence[PathStep] = ()
) -> str:
    """Return a standalone SVG of ``timeline``, light or dark as the reader's system is.

    Boxes carry letter and micro-batch where they fit, and a tooltip with stage, times and rank.

    Args:
        timeline: simulated or measured.
        title: shown above the drawing; escaped.
        figures: one line below the title; by default makespan, longest rank and bubble ratio.
        path: the critical path, to be marked.
    """

    def draw(panel: Panel, clock: Clock) -> str:
        return timeline_svg(panel.timeline, clock, name="step", path=path)

    head = (title, figures or timeline_figures(timeline))
    return _file(head, [Panel("", timeline)], Clock(timeline.makespan_s), draw)


def picture_svg_file(timeline: Timeline, *, title: str, figures: str = "") -> str:
    """Return the same without tooltips and ids, for a picture on a page."""

    def draw(panel: Panel, clock: Clock) -> str:
        return picture_svg(panel.timeline, clock)

    head = (title, figures or timeline_figures(timeline))
    return _file(head, [Panel("", timeline)], Clock(timeline.makespan_s), draw)


def comparison_svg_file(
    panels: Sequence[Panel], *, title: str, figures: str = "", length_s: float | None = None
) -> str:
    """Return a standalone SVG of several timelines, one below the other, on one time scale.

    Args:
        panels: at least one, each of another name.
        title: shown above all of them; escaped.
        figures: one line below the title.
        length_s: seconds that are shown at most; by default all.
    """

    def draw(panel: Panel, clock: Clock) -> str:
        return timeline_svg(panel.timeline, clock, name=escape(panel.name))

    longest_s = max(panel.timeline.makespan_s for panel in panels)
    return _file((title, figures), panels, Clock(length_s or longest_s, LOW_ROW), draw)


def timeline_figures(timeline: Timeline) -> str:
    """Makespan, longest rank and bubble ratio, in one line."""
    return " · ".join(
        [
            f"makespan {units.duration(timeline.makespan_s)}",
            f"longest rank {units.duration(timeline.rank_span_s)}",
            f"bubble ratio {units.share(timeline.bubble_ratio)}",
        ]
    )


def _file(
    head: tuple[str, str],
    panels: Sequence[Panel],
    clock: Clock,
    draw: Callable[[Panel, Clock], str],
) -> str:
    title, figures = map(escape, head)
    width, y = WIDTH + 2 * MARGIN, HEAD
    num_passes = max(passes_of(panel.timeline).num_passes for panel in panels)
    body: list[str] = []
    for panel in panels:
        if panel.name:
            body.append(_panel_head(panel, y + 15))
            y += PANEL_HEAD
        height = clock.height(panel.timeline.num_ranks)
        placed = f'<svg x="{MARGIN}" y="{y}" width="{WIDTH}" height="{height}" '
        body.append(draw(panel, clock).replace("<svg ", placed, 1))
        y += height
    size = f'viewBox="0 0 {width} {y + MARGIN}" width="{width}" height="{y + MARGIN}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
            f"<title>{title}</title>",
            f"<style>{drawing_style(num_passes)}{_STYLE}</style>",
            f'<rect class="page" width="{width}" height="{y + MARGIN}"/>',
            f'<text class="title" x="{MARGIN}" y="34">{title}</text>',
            f'<text class="figures" x="{MARGIN}" y="56">{figures}</text>',
            *_legend([panel.timeline for panel in panels], width),
            *body,
            "</svg>",
            "",
        ]
    )


def _panel_head(panel: Panel, y: int) -> str:
    figures = f'<tspan class="figures" dx="10">{escape(panel.figures)}</tspan>'
    return f'<text class="panel" x="{MARGIN}" y="{y}">{escape(panel.name)}{figures}</text>'


def _legend(timelines: Sequence[Timeline], width: float) -> Iterator[str]:
    """Kinds that occur, idle, and what darker means, from the right edge leftwards."""
    kinds = {str(span.action.kind) for timeline in timelines for span in timeline.spans}
    names = [(kind, look.name) for kind, look in LOOKS.items() if kind in kinds]
    x = width - MARGIN
    for kind, name in reversed([*names, ("idle", "idle")]):
        x -= 26 + 6.6 * len(name)
        shape = f'<rect x="{x:.1f}" y="44" width="14" height="14" rx="2"'
        swatch = f'{shape} class="idle"/>' if kind == "idle" else f"{shape}/>"
        text = f'<text x="{x + 20:.1f}" y="56">{name}</text>'
        yield f'<g class="legend {kind}">{swatch}{text}</g>'
        x -= 14
    if note := darker_note(timelines):
        style = 'text-anchor="end" class="figures"'
        yield f'<text {style} x="{width - MARGIN}" y="34">{escape(note, quote=False)}</text>'
