"""The report of a run as one HTML file that needs nothing else: no network, no fonts, no server."""

from __future__ import annotations

from html import escape
from statistics import median
from typing import TYPE_CHECKING

from intandem.views import units
from intandem.views.chart_svg import Line, chart_svg
from intandem.views.clock import Clock
from intandem.views.page import clock_heading, facts_html, legend_html, page_html
from intandem.views.timeline_svg import activations_svg, timeline_svg

if TYPE_CHECKING:
    from collections.abc import Iterator

    from intandem.ir import Timeline
    from intandem.views.report import LossCurve, Report, StageRow, Throughput

UNKNOWN = "&ndash;"


def report_html(report: Report) -> str:
    """Return ``report`` as one HTML page, light or dark as the reader's system is.

    Everything a user can name is escaped. The page is complete without its script, which adds
    details on hover and focus, and the switch between light and dark.
    """
    sections = (
        _facts(report),
        _timelines(report),
        _activations(report),
        _stages(report.stages),
        _charts(report),
    )
    plural = "" if report.num_ranks == 1 else "s"
    subtitle = (
        f"{report.schedule} · {report.num_ranks} rank{plural} · "
        f"{report.num_microbatches} micro-batches"
    )
    main = "\n".join(filter(None, sections))
    return page_html(report.title, subtitle, main, _environment(report))


def _facts(report: Report) -> str:
    """The headline numbers, and the line that says whose gradients these are."""
    facts = facts_html(_headlines(report))
    proof, verdict = report.gradient_equality, "equal" if report.gradients_equal else "differs"
    line = "" if proof is None else f'\n<p class="{verdict}">{escape(proof)}</p>'
    return f"{facts}{line}"


def _headlines(report: Report) -> Iterator[tuple[str, str, str]]:
    """Name, value and note of each headline number."""
    if report.step_s is not None:
        yield "step time", units.duration(report.step_s), "median, optimizer included"
    if report.speed_ratio is not None:
        yield "speed", f"{report.speed_ratio:.2f}&times;", "one process on one core, same run"
    if report.throughput and report.throughput.points:
        rate = median(rate for _, rate in report.throughput.points)
        yield "throughput", f"{units.count(rate)}/s", f"{escape(report.throughput.unit)}, median"
    planned, measured = report.planned, report.measured
    if shown := measured or planned:
        yield (
            "makespan",
            units.duration(shown.makespan_s),
            _makespan_note(planned, measured),
        )
        yield "bubble ratio", units.share(shown.bubble_ratio), _bubble_note(planned, measured)
    if report.loss and (curve := report.loss.heldout or report.loss.training):
        yield "loss", f"{curve[-1][1]:.3f}", _loss_note(report.loss)


def _makespan_note(planned: Timeline | None, measured: Timeline | None) -> str:
    if planned is None or measured is None:
        return "planned" if measured is None else "measured"
    longer = measured.makespan_s / planned.makespan_s - 1 if planned.makespan_s else 0.0
    return f"planned {units.duration(planned.makespan_s)} ({100 * longer:+.1f} %)"


def _bubble_note(planned: Timeline | None, measured: Timeline | None) -> str:
    if planned is None or measured is None:
        return "planned" if measured is None else "measured"
    return f"planned {units.share(planned.bubble_ratio)}"


def _loss_note(loss: LossCurve) -> str:
    which = f"{'held-out' if loss.heldout else 'training'}, {escape(loss.unit)}".rstrip(", ")
    if loss.reference is None:
        return which
    return f"{which}; {escape(loss.reference_name)} {loss.reference:.3f}"


def _clock(report: Report) -> Clock:
    """The time scale that both timelines share: as long as the longer one, updates included."""
    ends = [t.makespan_s for t in (report.planned, report.measured) if t]
    if report.measured:
        ends += [span.end_s - report.measured.start_s for span in report.optimizer]
    return Clock(max(ends, default=0.0))


def _timelines(report: Report) -> str:
    """Planned above measured, on one time scale."""
    clock, figures = _clock(report), []
    for name, timeline in (("planned", report.planned), ("measured", report.measured)):
        if timeline is None:
            continue
        updates = report.optimizer if name == "measured" else ()
        drawing = timeline_svg(timeline, clock, name=name, optimizer=updates)
        figures.append(
            f"<figure><figcaption>{name.capitalize()} <small>makespan "
            f"{units.duration(timeline.makespan_s)} · bubble ratio "
            f"{units.share(timeline.bubble_ratio)}</small></figcaption>\n"
            f'<div class="scroll clock">{drawing}</div></figure>'
        )
    if not figures:
        return ""
    timelines = [t for t in (report.planned, report.measured) if t]
    legend = legend_html(timelines, more="O" if report.optimizer else "")
    heading = clock_heading("same time scale")
    return "\n".join(["<section>", heading, legend, *figures, "</section>"])


def _activations(report: Report) -> str:
    curves, start_s = {}, {}
    for name, ranks, timeline in (
        ("measured", report.measured_activations, report.measured),
        ("planned", report.planned_activations, report.planned),
    ):
        if ranks and timeline:
            curves[name], start_s[name] = ranks, timeline.start_s
    if not curves:
        return ""
    looks = {"measured": "solid", "planned": "dash"}
    legend = "".join(f'<li><i class="{looks[name]}"></i>{name}</li>' for name in curves)
    drawing = activations_svg(curves, _clock(report), start_s=start_s)
    peaks = " / ".join(curves)
    return (
        f"<section>\n<h2>Activations held <small>micro-batches in flight on each rank; "
        f'peak {peaks}</small></h2>\n<ul class="legend">{legend}</ul>\n'
        f'<div class="scroll clock">{drawing}</div>\n</section>'
    )


def _stages(stages: tuple[StageRow, ...]) -> str:
    if not stages:
        return ""
    heads = "".join(
        f'<th scope="col"{_align(name)}>{name}</th>' for name, _ in _stage_cells(stages[0])
    )
    rows = (
        "".join(f"<td{_align(name)}>{value}</td>" for name, value in _stage_cells(row))
        for row in stages
    )
    body = "\n".join(f"<tr>{cells}</tr>" for cells in rows)
    return (
        "<section>\n<h2>Stages <small>times and bytes sent are of one micro-batch; B is I and W "
        "together where they are split; gradients that can wait for W are computed there, the "
        f'others in I</small></h2>\n<div class="scroll"><table>\n<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>\n</section>"
    )


def _stage_cells(row: StageRow) -> tuple[tuple[str, str], ...]:
    """Heading and text of each column."""
    return (
        ("stage", str(row.stage)),
        ("rank" if len(row.ranks) == 1 else "ranks", ", ".join(map(str, row.ranks))),
        ("blocks", escape(row.blocks)),
        ("parameters", units.count(row.num_parameters)),
        ("bytes", units.size(row.parameter_bytes)),
        ("wait for W", _share(row.num_waiting, row.num_parameters)),
        ("F planned", _time(row.planned_forward_s)),
        ("F measured", _time(row.measured_forward_s)),
        ("B planned", _time(row.planned_backward_s)),
        ("B measured", _time(row.measured_backward_s)),
        ("sent", UNKNOWN if row.sent_bytes is None else units.size(row.sent_bytes)),
    )


def _time(time_s: float | None) -> str:
    return UNKNOWN if time_s is None else units.duration(time_s)


def _share(part: int | None, whole: int) -> str:
    return UNKNOWN if part is None or not whole else f"{100 * part / whole:.0f} %"


def _align(column: str) -> str:
    return ' class="text"' if column == "blocks" else ""


def _charts(report: Report) -> str:
    figures = [
        *([_loss(report.loss)] if report.loss and report.loss.training else []),
        *(
            [_throughput(report.throughput)]
            if report.throughput and report.throughput.points
            else []
        ),
    ]
    return f'<section class="charts">\n{"".join(figures)}\n</section>' if figures else ""


def _loss(loss: LossCurve) -> str:
    lines = [Line("training", "training", loss.training)]
    if loss.heldout:
        lines.append(Line("held-out", "heldout", loss.heldout, marked=True))
    reference = None if loss.reference is None else (loss.reference_name, loss.reference)
    names = '<span style="color:var(--accent)">training</span>'
    if loss.heldout:
        names += ', <span style="color:var(--second)">held-out ●</span>'
    unit = f", {escape(loss.unit)}" if loss.unit else ""
    drawing = chart_svg(lines, label="loss over steps", reference=reference)
    return f"<figure><h2>Loss <small>{names}{unit}</small></h2>\n{drawing}</figure>\n"


def _throughput(throughput: Throughput) -> str:
    line = Line(throughput.unit, "training", throughput.points)
    drawing = chart_svg([line], label="throughput over steps", from_zero=True)
    unit = escape(throughput.unit)
    return f"<figure><h2>Throughput <small>{unit} per second</small></h2>\n{drawing}</figure>\n"


def _environment(report: Report) -> str:
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in report.environment
    )
    return f"<dl>{items}</dl>" if items else ""
