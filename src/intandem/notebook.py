"""How schedules and timelines look in a notebook: as pictures.

Values ask for this by name (``intandem.ir.pictures``), since they are below everything that draws.
"""

from __future__ import annotations

from base64 import b64encode
from html import escape

from intandem.costs import CostModel
from intandem.errors import PipelineError
from intandem.ir import Schedule, Timeline
from intandem.simulator import simulate
from intandem.views.svg import picture_svg_file

MOST_ACTIONS = 20_000
"""Of larger ones the text is shown."""


def html_of(value: Schedule | Timeline) -> str | None:
    """Return a picture of ``value`` as HTML; None where a notebook is to show its text.

    A schedule is drawn on the clock of a simulator, with F, I and W one second each; one that is
    not valid has no picture. The picture is light or dark as the reader's system is, and nothing in
    it touches the page around it.
    """
    match value:
        case Schedule():
            return None if sum(map(len, value.actions)) > MOST_ACTIONS else _of_schedule(value)
        case Timeline():
            return None if len(value.spans) > MOST_ACTIONS else _picture(value, "one step")


def _of_schedule(schedule: Schedule) -> str | None:
    try:
        timeline = simulate(schedule, CostModel.uniform(schedule.num_stages))
    except PipelineError:
        return None
    counts = f"{schedule.num_ranks} ranks · {schedule.num_microbatches} micro-batches"
    return _picture(timeline, f"{schedule.name} · {counts}")


def _picture(timeline: Timeline, title: str) -> str:
    svg = picture_svg_file(timeline, title=title)
    encoded = b64encode(svg.encode()).decode()
    said = f"{title}: a row per rank, a box per action"
    source = f"data:image/svg+xml;base64,{encoded}"
    return f'<img alt="{escape(said)}" style="max-width:100%" src="{source}">'
