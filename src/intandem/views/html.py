"""The report of a run as one HTML file that needs nothing else: no network, no fonts, no server."""

from __future__ import annotations

from html import escape
from statistics import median
from typing import TYPE_CHECKING

from intandem.views import units
from intandem.views.chart_svg import Line, chart_svg
from intandem.views.clock import Clock
from intandem.views.downloads import downloads_html
from intandem.views.idle_html import idle_section
from intandem.views.page import clock_heading, facts_html, legend_html, page_html
from intandem.views.path_html import path_section
from intandem.views.stage_table import stage_section
from intandem.views.timeline_svg import activations_svg, timeline_svg

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from intandem.ir import Timeline
    from intandem.views.report import LossCurve, Report, Throughput


def report_html(report: Report) -> str:
    """Return ``report`` as one HTML page, light or dark as the reader's system is.

    Everything a user can name is escaped. The page is complete without its script, which adds
    details on hover and focus, and the switch between light and dark.
    """
    sections = (
        _facts(report),
        _timelines(report),
        _idle(report),
        path_section(report.critical_path, _shown(report)),
        _activations(report),
        stage_section(report.stages),
        _charts(report),
        _configuration(report),
        downloads_html(report),
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
        path = report.critical_path if timeline is report.timeline else ()
        drawing = timeline_svg(timeline, clock, name=name, optimizer=updates, path=path)
        figures.append(
            f"<figure><figcaption>{name.capitalize()} <small>makespan "
            f"{units.duration(timeline.makespan_s)} · bubble ratio "
            f"{units.share(timeline.bubble_ratio)}</small></figcaption>\n"
            f'<div class="scroll clock">{drawing}</div></figure>'
        )
    if not figures:
        return ""
    timelines = [t for t in (report.planned, report.measured) if t]
    note = "underlined: critical path" if report.critical_path else ""
    legend = legend_html(timelines, more="O" if report.optimizer else "", note=note)
    heading = clock_heading("same time scale")
    return "\n".join(["<section>", heading, legend, *figures, "</section>"])


def _shown(report: Report) -> str:
    return "planned" if report.measured is None else "measured"


def _idle(report: Report) -> str:
    if report.timeline is None:
        return ""
    return idle_section(report.idle, report.timeline, _shown(report))


def _activations(report: Report) -> str:
    """In bytes where they are known, else counted."""
    in_bytes = bool(report.measured_memory or report.planned_memory)
    measured = report.measured_memory if in_bytes else report.measured_activations
    planned = report.planned_memory if in_bytes else report.planned_activations
    curves, start_s = {}, {}
    for name, ranks, timeline in (
        ("measured", measured, report.measured),
        ("planned", planned, report.planned),
    ):
        if ranks and timeline:
            curves[name], start_s[name] = ranks, timeline.start_s
    if not curves:
        return ""
    looks = {"measured": "solid", "planned": "dash"}
    legend = "".join(f'<li><i class="{looks[name]}"></i>{name}</li>' for name in curves)
    write = units.size if in_bytes else str
    drawing = activations_svg(curves, _clock(report), start_s=start_s, write=write)
    what = "bytes kept for the backward" if in_bytes else "micro-batches in flight"
    peaks = " / ".join(curves)
    return (
        f"<section>\n<h2>Activations held <small>{what} on each rank; "
        f'peak {peaks}</small></h2>\n<ul class="legend">{legend}</ul>\n'
        f'<div class="scroll clock">{drawing}</div>\n</section>'
    )


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


def _configuration(report: Report) -> str:
    if not report.configuration:
        return ""
    return f"<section>\n<h2>Configuration</h2>\n{_pairs(report.configuration)}\n</section>"


def _environment(report: Report) -> str:
    return _pairs(report.environment) if report.environment else ""


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs
    )
    return f'<dl class="pairs">{items}</dl>'
