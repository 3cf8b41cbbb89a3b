"""A step on the clock as an SVG file of its own: title, figures, legend, rows and time axis."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from intandem.views import units
from intandem.views.colors import LOOKS, drawing_style
from intandem.views.timeline_svg import AXIS, GAP, ROW, WIDTH, Clock, timeline_svg

if TYPE_CHECKING:
    from collections.abc import Iterator

    from intandem.ir import Timeline

MARGIN = 24
HEAD = 84
"""Height of title, figures and legend."""

_STYLE = """
svg { --page: #ffffff; --ink: #1b1f24; --quiet: #57606a; --rule: #dfe3e8; --idle: #eceff2; }
@media (prefers-color-scheme: dark) {
  svg { --page: #15181c; --ink: #e4e7eb; --quiet: #98a2ad; --rule: #2d333a; --idle: #23282e; }
}
.page { fill: var(--page); }
svg .title { font-size: 17px; font-weight: 650; }
svg .figures, svg .legend text { fill: var(--quiet); font-size: 12.5px; }
"""


def timeline_svg_file(timeline: Timeline, *, title: str) -> str:
    """Return a standalone SVG of ``timeline``, light or dark as the reader's system is.

    Boxes carry letter and micro-batch where they fit, and a tooltip with stage, times and rank.
    Drawings that are to line up are made with ``timeline_svg`` and one ``Clock`` instead.

    Args:
        timeline: simulated or measured.
        title: shown above the drawing; escaped.
    """
    rows = timeline_svg(timeline, Clock(timeline.makespan_s), name="step")
    plot_height = timeline.num_ranks * (ROW + GAP) + AXIS
    width, height = WIDTH + 2 * MARGIN, HEAD + plot_height + MARGIN
    placed = f'<svg x="{MARGIN}" y="{HEAD}" width="{WIDTH}" height="{plot_height}" '
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}">',
            f"<title>{escape(title)}</title>",
            f"<style>{drawing_style()}{_STYLE}</style>",
            f'<rect class="page" width="{width}" height="{height}"/>',
            f'<text class="title" x="{MARGIN}" y="34">{escape(title)}</text>',
            f'<text class="figures" x="{MARGIN}" y="56">{_figures(timeline)}</text>',
            *_legend(timeline, width),
            rows.replace("<svg ", placed, 1),
            "</svg>",
            "",
        ]
    )


def _figures(timeline: Timeline) -> str:
    return " · ".join(
        [
            f"makespan {units.duration(timeline.makespan_s)}",
            f"longest rank {units.duration(timeline.rank_span_s)}",
            f"bubble ratio {units.share(timeline.bubble_ratio)}",
        ]
    )


def _legend(timeline: Timeline, width: float) -> Iterator[str]:
    """Kinds that occur, and idle, from the right edge leftwards."""
    kinds = {str(span.action.kind) for span in timeline.spans}
    names = [(kind, look.name) for kind, look in LOOKS.items() if kind in kinds]
    x = width - MARGIN
    for kind, name in reversed([*names, ("idle", "idle")]):
        x -= 26 + 6.6 * len(name)
        shape = f'<rect x="{x:.1f}" y="44" width="14" height="14" rx="2"'
        swatch = f'{shape} class="idle"/>' if kind == "idle" else f"{shape}/>"
        text = f'<text x="{x + 20:.1f}" y="56">{name}</text>'
        yield f'<g class="legend {kind}">{swatch}{text}</g>'
        x -= 14
