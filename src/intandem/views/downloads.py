"""Files inside the page, as links: trace, drawing, table of spans, and the report's own value."""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING

from intandem.views.chrome_trace import chrome_trace
from intandem.views.report_json import format_report
from intandem.views.spans_csv import spans_csv
from intandem.views.svg import timeline_svg_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from intandem.views.report import Report


def downloads_html(report: Report) -> str:
    """Return links to files of the measured step, or of the planned one if there is no other."""
    links = [
        f'<li><a download="{name}" href="data:{kind};base64,{b64encode(text.encode()).decode()}">'
        f"{said}</a></li>"
        for name, kind, said, text in _files(report)
    ]
    return f'<ul class="downloads"><li>Download:</li>{"".join(links)}</ul>'


def _files(report: Report) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, what the link says, and content of each."""
    if (timeline := report.timeline) is not None:
        is_measured = report.measured is not None
        updates = report.optimizer if is_measured else ()
        held = report.measured_activations if is_measured else report.planned_activations
        trace = chrome_trace(
            timeline,
            title=report.title,
            program=report.program,
            optimizer=updates,
            activations=held,
        )
        drawing = timeline_svg_file(timeline, title=report.title, path=report.critical_path)
        yield "trace.json", "application/json", "trace for Perfetto", trace
        yield "timeline.svg", "image/svg+xml", "drawing (SVG)", drawing
        yield "spans.csv", "text/csv", "spans (CSV)", spans_csv(timeline, optimizer=updates)
    yield "report.json", "application/json", "this report (JSON)", format_report(report)
