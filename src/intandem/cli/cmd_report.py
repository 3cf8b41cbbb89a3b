"""``intandem report``: the HTML page of a run, made from what the run left."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path  # noqa: TC003  (read at run time, to know what an argument is)
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from intandem.cli.arguments import carry_out
from intandem.cli.files import read_text, require_writable

if TYPE_CHECKING:
    from intandem.views.report import Report

REPORT_FILE, METRICS_FILE, PAGE_FILE = "report.json", "metrics.jsonl", "report.html"

ABOUT = f"""Make the HTML report of a run: timelines, idle time, critical path, memory, curves.

A run leaves {REPORT_FILE} in its folder, by pipe.report("RUN/{REPORT_FILE}"). Where the folder has
{METRICS_FILE} too, its loss, validation_loss and rate (tokens_per_s) by step are the curves.

examples:
  intandem report runs/gpt
  intandem report runs/gpt/report.json --output gpt.html
  intandem report runs/gpt --format json
"""


@dataclass(frozen=True, slots=True)
class Arguments:
    """What ``report`` takes."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run, or the file that it left."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Where the page goes; by default report.html in the folder of the run."""
    format: Literal["text", "json"] = "text"
    """What is printed: where the page is and the figures, or one JSON object."""


def main(argv: list[str]) -> int:
    """Run the command; returns the exit status."""
    return carry_out(_report, Arguments, argv, command="report", about=ABOUT)


def _report(arguments: Arguments) -> int:
    from intandem.views.html import report_html

    file = _file_of(arguments.run)
    output = arguments.output or file.parent / PAGE_FILE
    require_writable(output, option="--output")
    report = _read(file)
    output.write_text(report_html(report), encoding="utf-8")
    figures = _figures(report, output)
    print(json.dumps(figures) if arguments.format == "json" else _text(report, output))
    return 0


def _file_of(run: Path) -> Path:
    if not run.exists():
        msg = f"{run}: there is no such folder or file"
        raise ValueError(msg)
    if run.is_dir() and not (run / REPORT_FILE).is_file():
        msg = (
            f"{run} has no {REPORT_FILE}; expected the folder of a run, which leaves one by "
            f'pipe.report("{run / REPORT_FILE}")'
        )
        raise ValueError(msg)
    return run / REPORT_FILE if run.is_dir() else run


def _read(file: Path) -> Report:
    from intandem.views.metrics import with_metrics
    from intandem.views.report_json import parse_report

    report, metrics = parse_report(read_text(file), what=str(file)), file.parent / METRICS_FILE
    if not metrics.is_file():
        return report
    return with_metrics(report, read_text(metrics), what=str(metrics))


def _figures(report: Report, output: Path) -> dict[str, Any]:
    shown = report.timeline
    found: dict[str, Any] = {
        "page": str(output),
        "title": report.title,
        "schedule": report.schedule,
        "num_ranks": report.num_ranks,
        "num_microbatches": report.num_microbatches,
        "step_s": report.step_s,
        "idle": [asdict(parts) for parts in report.idle],
        "critical_path": [str(step.span.action) for step in report.critical_path],
    }
    if shown is not None:
        found |= {"makespan_s": shown.makespan_s, "bubble_ratio": shown.bubble_ratio}
    if report.loss and report.loss.training:
        found["loss"] = report.loss.training[-1][1]
    return found


def _text(report: Report, output: Path) -> str:
    from intandem.views.units import duration, share

    lines = [f"{report.title}: {report.schedule}, {report.num_ranks} ranks"]
    if (shown := report.timeline) is not None:
        bubble = share(shown.bubble_ratio)
        lines.append(f"makespan {duration(shown.makespan_s)}, bubble ratio {bubble}")
    for rank, parts in enumerate(report.idle):
        named = ((key.removesuffix("_s").replace("_", "-"), s) for key, s in asdict(parts).items())
        said = ", ".join(f"{name} {duration(seconds)}" for name, seconds in named if seconds > 0)
        lines.append(f"rank {rank} idle {duration(parts.total_s)}: {said or 'never'}")
    return "\n".join([*lines, f"page {output}"])
