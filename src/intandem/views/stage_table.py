"""The table of stages: what each holds, what it takes, and what it sends."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from intandem.views import units

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from intandem.views.report import StageRow

UNKNOWN = "&ndash;"


def stage_section(stages: Sequence[StageRow]) -> str:
    """Return the section's HTML; columns of which nothing is known are left out."""
    if not stages:
        return ""
    columns = list(_columns(stages))
    heads = "".join(f'<th scope="col"{_align(name)}>{name}</th>' for name, _ in columns)
    rows = (
        "".join(f"<td{_align(name)}>{cell(row)}</td>" for name, cell in columns) for row in stages
    )
    body = "\n".join(f"<tr>{cells}</tr>" for cells in rows)
    return (
        "<section>\n<h2>Stages <small>times as measured and as planned, operations and bytes "
        "kept and sent are of one micro-batch; B is I and W together where they are split; "
        "gradients that can wait for W are computed there, the others in I; FLOPs are of "
        "products, convolutions and attention</small></h2>\n"
        f'<div class="scroll"><table class="stages">\n<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>\n</section>"
    )


def _columns(stages: Sequence[StageRow]) -> Iterator[tuple[str, Callable[[StageRow], str]]]:
    """Heading of each column, and what makes its text."""
    several = any(len(row.ranks) > 1 for row in stages)
    yield "stage", lambda row: str(row.stage)
    yield "ranks" if several else "rank", lambda row: ", ".join(map(str, row.ranks))
    yield "blocks", lambda row: escape(row.blocks)
    yield "parameters", lambda row: units.count(row.num_parameters)
    yield "bytes", lambda row: units.size(row.parameter_bytes)
    yield "wait for W", lambda row: _share(row.num_waiting, row.num_parameters)
    yield "F", lambda row: _times(row.measured_forward_s, row.planned_forward_s)
    split = [row.measured_input_s is not None for row in stages]
    if any(split):
        yield "I", lambda row: _times(row.measured_input_s, row.planned_input_s)
        yield "W", lambda row: _times(row.measured_weight_s, row.planned_weight_s)
    if not all(split):
        yield "B", lambda row: _times(row.measured_backward_s, row.planned_backward_s)
    if any(row.forward_flops is not None for row in stages):
        yield "FLOPs F", lambda row: _known(row.forward_flops, units.count)
        yield "FLOPs B", lambda row: _known(row.backward_flops, units.count)
    if any(row.activation_bytes is not None for row in stages):
        yield "kept", lambda row: _known(row.activation_bytes, units.size)
    yield "sent", lambda row: _known(row.sent_bytes, units.size)


def _times(measured_s: float | None, planned_s: float | None) -> str:
    """Write what was measured, and what was planned below it."""
    plan = "" if planned_s is None else f"<small>plan {units.duration(planned_s)}</small>"
    return (UNKNOWN if measured_s is None else units.duration(measured_s)) + plan


def _known(number: int | None, write: Callable[[float], str]) -> str:
    return UNKNOWN if number is None else write(number)


def _share(part: int | None, whole: int) -> str:
    return UNKNOWN if part is None or not whole else f"{100 * part / whole:.0f} %"


def _align(column: str) -> str:
    return ' class="text"' if column == "blocks" else ""
