"""Files that ``show`` and ``search`` write besides what they print."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path  # noqa: TC003  (read at run time, to know what an argument is)
from typing import TYPE_CHECKING, Annotated

import tyro

from intandem.cli.files import require_writable
from intandem.ir import format_compute_csv

if TYPE_CHECKING:
    from intandem.cli.figures import Shown


@dataclass(frozen=True, slots=True)
class Outputs:
    """Files to write."""

    svg: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the drawing to this SVG file as well."""
    html: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write a page with the drawing, figures and what each rank holds; opens without a network."""
    trace: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write a Chrome trace, for ui.perfetto.dev or chrome://tracing."""
    spans: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write when each action runs to this CSV file."""
    csv: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the compute order to this CSV file, as torch.distributed.pipelining reads it."""


def check_outputs(outputs: Outputs) -> None:
    """Find out before anything is computed whether the files asked for can be written.

    Raises:
        ValueError: naming the option and the file.
    """
    for field in fields(outputs):
        if path := getattr(outputs, field.name):
            require_writable(path, option=f"--{field.name}")


def write_outputs(shown: Shown, outputs: Outputs) -> None:
    """Write the files asked for.

    Raises:
        OSError: if one cannot be written.
    """
    if outputs.svg:
        from intandem.views.svg import timeline_svg_file

        text = timeline_svg_file(shown.timeline, title=shown.title, figures=shown.figures)
        outputs.svg.write_text(text, "utf-8")
    if outputs.html:
        outputs.html.write_text(_page(shown), "utf-8")
    if outputs.trace:
        from intandem.views.chrome_trace import chrome_trace

        curves = shown.activations()
        text = chrome_trace(
            shown.timeline, title=shown.title, program=shown.program, activations=curves
        )
        outputs.trace.write_text(text, "utf-8")
    if outputs.spans:
        from intandem.views.spans_csv import spans_csv

        outputs.spans.write_text(spans_csv(shown.timeline), "utf-8")
    if outputs.csv:
        outputs.csv.write_text(format_compute_csv(shown.program.compute_order()), "utf-8")


def _page(shown: Shown) -> str:
    from intandem.views.panel import Panel
    from intandem.views.schedule_html import schedule_html

    return schedule_html(
        Panel("step", shown.timeline),
        title=shown.title,
        facts=shown.facts(),
        activations=shown.activations(),
    )
