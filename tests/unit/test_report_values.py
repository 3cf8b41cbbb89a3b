"""A report as a file: round trip, strictness, metrics, the command, and notebooks."""

import base64
import json
import re
from dataclasses import fields, replace

import pytest
import torch
from report_sample import MEASURED, full_report
from test_report import Page
from torch import nn

import intandem as it
from intandem.cli.main import main
from intandem.costs import CostModel
from intandem.ir import Placement, Schedule, Timeline
from intandem.lowering import lower
from intandem.schedules import build_schedule
from intandem.simulator import critical_path, idle_parts, simulate
from intandem.views.boxes_svg import MARK
from intandem.views.clock import GAP, ROW, Clock
from intandem.views.html import report_html
from intandem.views.metrics import with_metrics
from intandem.views.report import LossCurve, Report, Throughput
from intandem.views.report_json import format_report, parse_report
from intandem.views.timeline_svg import timeline_svg
from trace_format import check_trace

PROGRAM = lower(build_schedule("1f1b", num_ranks=2, num_microbatches=2))


def whole(**changes):
    """A report with what the sample leaves out."""
    more = {
        "program": PROGRAM,
        "idle": idle_parts(MEASURED, PROGRAM, {0: (20.0, 20.5)}),
        "critical_path": critical_path(MEASURED, PROGRAM),
        "configuration": (("schedule", "1f1b"),),
        "measured_memory": (((10.0, 1 << 20), (16.5, 0)), ((11.0, 1 << 21), (18.0, 0))),
    }
    return full_report(**(more | changes))


def test_round_trip():
    """Reading what was written gives an equal value, and writing it the same text."""
    report = whole()
    text = format_report(report)

    assert parse_report(text, what="r") == report
    assert format_report(parse_report(text, what="r")) == text


def test_every_field_is_kept():
    """One that is not its default is in the file."""
    content = json.loads(format_report(whole(gradients_equal=False, planned_memory=(((0.0, 1),),))))

    assert set(content["report"]) == {field.name for field in fields(Report)}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"version":1', '"version":2', "r.json: version is 2; this one reads 1"),
        ('"intandem report"', '"other"', "r.json: format is 'other'; expected 'intandem report'"),
        ('"title"', '"titel"', "r.json: report: unknown key 'titel'; known: title, schedule"),
        ('"schedule":"1f1b",', "", "r.json: report has no 'schedule'"),
        ('[0,"0F0"', '[0,"0Q0"', "r.json: report.planned.spans[0][1]: '0Q0' is not an action"),
        ('[0,"0F0",0.0', '[0,"0F0",NaN', "report.planned.spans[0][2] has nan; expected a finite"),
        ('[0,"0F0",0.0', '[0.5,"0F0",0.0', "spans[0][0] has 0.5; expected a whole number"),
        ('[0,"0F0",0.0,', '[0,"0F0",', "report.planned.spans[0] has 3 items; expected 4"),
        ('"title":"GPT"', '"title":3', "report.title has 3; expected text"),
        ('"step_s":0.512', '"step_s":"x"', "report.step_s has 'x'; expected a number"),
        ("intandem program 1", "intandem program 9", "report.program: line 1"),
        ('{"format"', '[{"format"', "r.json: not JSON"),
    ],
)
def test_what_is_wrong_is_named(old, new, message):
    """The file, the place, what is there and what was expected."""
    text = format_report(whole())
    assert old in text

    with pytest.raises(ValueError, match=re.escape(message)):
        parse_report(text.replace(old, new, 1), what="r.json")


class TestPageOfAll:
    def page(self, **changes):
        return Page(report_html(whole(**changes)))

    @pytest.mark.parametrize(
        "expected",
        [
            "fill", "the schedule's wait before the first backward",
            "optimizer 500 ms", "Critical path measured; underlined in the drawing above",
            "All 6 actions, in order", "Configuration schedule 1f1b",
            "bytes kept for the backward on each rank", "1.00 MiB",
        ],
    )  # fmt: skip
    def test_says(self, expected):
        """Every section, as text."""
        page = self.page()
        titles = " ".join(title for title in page.words)
        assert expected in f"{page.text} {' '.join(titles.split())}"

    def test_idle_time_adds_up(self):
        """What the table says of each rank."""
        parts = whole().idle
        for rank, part in enumerate(parts):
            assert part.total_s == pytest.approx(10.5 - MEASURED.busy_of_rank_s(rank))

    def test_the_path_is_marked_by_more_than_colour(self):
        """A line below the box, and words where the box is described."""
        html = report_html(whole())
        path = {str(step.span.action) for step in whole().critical_path}

        marked = re.findall(r'id="measured-(\w+)"[^>]*aria-label="[^"]*on the critical path"', html)
        assert set(marked) == path
        assert len(re.findall(r'<rect class="mark"', html)) == len(path)
        assert "underlined: critical path" in Page(html).text

    def test_marks_of_actions_that_ran_together(self):
        """Are inside their boxes, where nothing is drawn over them."""
        order = lower(build_schedule("dualpipe-v", num_ranks=2, num_microbatches=6))
        found = simulate(order, CostModel.uniform(4))
        clock = Clock(found.makespan_s)

        svg = timeline_svg(found, clock, name="t", path=critical_path(found, order))

        tops = re.findall(r'<rect class="mark" x="[\d.]+" y="([\d.]+)"', svg)
        offsets = {float(top) % (ROW + GAP) for top in tops}
        assert offsets <= {ROW + 0.5, ROW / 2 - MARK, ROW - MARK}
        assert {ROW + 0.5, ROW - MARK} <= offsets

    def test_files_are_inside(self):
        """Trace, drawing, table and value, each whole; nothing else is linked to."""
        links = {
            attrs["download"]: attrs["href"] for tag, attrs in self.page().elements if tag == "a"
        }
        content = {
            name: base64.b64decode(href.partition("base64,")[2]).decode()
            for name, href in links.items()
        }

        assert set(links) == {"trace.json", "timeline.svg", "spans.csv", "report.json"}
        assert len(check_trace(content["trace.json"], 2)["s"]) == 4
        assert content["timeline.svg"].startswith("<svg xmlns")
        assert content["spans.csv"].count("\n") == 1 + 8 + 1
        assert parse_report(content["report.json"], what="r") == whole()

    def test_a_plan_alone(self):
        """Its own idle time and path."""
        timeline = simulate(PROGRAM, CostModel.uniform(2))
        report = Report(
            "t", "1f1b", 2, planned=timeline, program=PROGRAM,
            idle=idle_parts(timeline, PROGRAM), critical_path=critical_path(timeline, PROGRAM),
        )  # fmt: skip

        text = Page(report_html(report)).text
        assert "of each rank, planned; the parts add up" in text


class TestMetrics:
    LINES = (
        '{"step": 0, "loss": 3.0, "tokens_per_s": 100.0, "lr": 1}\n'
        '{"step": 1, "loss": NaN, "validation_loss": 2.5}\n\n{"step": 2, "loss": 2}\n'
    )

    def test_curves(self):
        """Of what each line has; what is not finite is left out."""
        report = with_metrics(full_report(loss=None), self.LINES, what="m")

        assert report.loss == LossCurve(((0, 3.0), (2, 2.0)), ((1, 2.5),))
        assert report.throughput.points == ((0, 100.0),)
        assert report.throughput.unit == "tokens"

    def test_a_rate_of_something_else(self):
        """Is named for what it counts."""
        report = with_metrics(full_report(), '{"step": 4, "images_per_s": 2.5}\n', what="m")

        assert report.throughput == Throughput(((4, 2.5),), "images")

    def test_without_any(self):
        """The report keeps its own."""
        assert with_metrics(full_report(), '{"step": 1}\n', what="m") == full_report()

    def test_a_line_that_was_not_finished(self):
        """Is the last of a run that was killed."""
        report = with_metrics(full_report(), self.LINES + '{"step": 3, "lo', what="m")

        assert len(report.loss.training) == 2

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            ('{"step": 0}\n{"st\n{"step": 2}\n', "m line 2 is not JSON"),
            ('{"st\n', "m line 1 is not JSON"),
            ('{"loss": 1}\n', "m line 1 is no object with a whole number for 'step'"),
            ("[1]\n", "m line 1 is no object"),
        ],
    )
    def test_faults(self, lines, message):
        """Are named with their line."""
        with pytest.raises(ValueError, match=message):
            with_metrics(full_report(), lines, what="m")


class TestCommand:
    def test_a_run(self, tmp_path, capsys):
        """A folder with the value and metrics becomes a page, by default in the folder."""
        (tmp_path / "report.json").write_text(format_report(whole()), encoding="utf-8")
        (tmp_path / "metrics.jsonl").write_text('{"step": 7, "loss": 1.25}\n')

        assert main(["report", str(tmp_path)]) == 0

        out = capsys.readouterr().out
        assert "makespan 10.0 s, bubble ratio 35.0 %" in out
        assert "rank 0 idle 4.50 s: fill" in out
        assert f"page {tmp_path / 'report.html'}" in out
        page = (tmp_path / "report.html").read_text()
        assert "<title>training at step 7: 1.25</title>" in page

    def test_json(self, tmp_path, capsys):
        """One object; a file in place of a folder, a page elsewhere."""
        file, page = tmp_path / "r.json", tmp_path / "p.html"
        file.write_text(format_report(whole()), encoding="utf-8")

        assert main(["report", str(file), "--format", "json", "--output", str(page)]) == 0

        found = json.loads(capsys.readouterr().out)
        assert (found["schedule"], found["num_ranks"]) == ("1f1b", 2)
        assert found["critical_path"][0] == "0F0"
        assert found["page"] == str(page)
        assert page.exists()

    @pytest.mark.parametrize(
        ("made", "message"),
        [
            (None, "there is no such folder or file"),
            ("folder", "has no report.json; expected the folder of a run"),
            ("broken", "report.json: not JSON"),
            ("metrics", "metrics.jsonl line 1 is not JSON"),
        ],
    )
    def test_what_is_no_run(self, made, message, tmp_path, capsys):
        """Is said in one sentence."""
        run = tmp_path / "run"
        if made is not None:
            run.mkdir()
        if made in {"broken", "metrics"}:
            text = "{" if made == "broken" else format_report(whole())
            (run / "report.json").write_text(text, encoding="utf-8")
        if made == "metrics":
            (run / "metrics.jsonl").write_text("nothing\n")

        assert main(["report", str(run)]) == 2

        err = capsys.readouterr().err
        assert err.startswith("intandem report: ")
        assert message in err
        assert err.count("\n") == 1

    def test_a_page_that_cannot_be_written(self, tmp_path, capsys):
        """Is found out first."""
        (tmp_path / "report.json").write_text("{", encoding="utf-8")

        assert main(["report", str(tmp_path), "--output", str(tmp_path / "no" / "a.html")]) == 2
        assert "make it first" in capsys.readouterr().err


class TestNotebook:
    def picture(self, value):
        html = value._repr_html_()
        assert html.startswith("<img alt=")
        assert "<script" not in html
        return base64.b64decode(html.rpartition("base64,")[2].rstrip('">')).decode()

    def test_a_schedule(self):
        """Is drawn, with every action."""
        schedule = build_schedule("zb-h1", num_ranks=2, num_microbatches=3)

        svg = self.picture(schedule)

        assert "zb-h1" in svg
        assert svg.count('<g class="box') == 18

    def test_a_timeline(self):
        """Is drawn as it is."""
        assert self.picture(MEASURED).count('<g class="box') == 8

    def test_what_cannot_be_drawn_is_text(self):
        """A schedule that is not valid, and one that is too large."""
        broken = Schedule("x", Placement.loop(1), 1, ((),))
        large = build_schedule("gpipe", num_ranks=8, num_microbatches=2000)

        assert broken._repr_html_() is None
        assert large._repr_html_() is None
        assert Timeline((), 0)._repr_html_() is not None


def square(output, batch):
    del batch
    return output.square().mean()


def test_what_a_stage_computes_and_keeps():
    """Two Linear of width 8 with Tanh on 4 rows: operations and bytes by hand."""
    torch.manual_seed(0)
    x = torch.randn(16, 8)
    model = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4)])
    with it.Pipeline(model, example=x, loss=square, ranks=2, microbatches=4,
                     split_points=["2"]) as pipe:  # fmt: skip
        pipe.step(x)
        first, last = (row for row in pipe.report_value().stages)

    linear, tensor = 2 * 4 * 8 * 8, 4 * 8 * 4
    assert first.forward_flops == last.forward_flops == 2 * linear
    assert first.backward_flops == 3 * linear  # the first one's input wants no gradient
    assert last.backward_flops == 4 * linear
    assert first.activation_bytes == tensor  # of its Tanh; what it sends is given back
    assert last.activation_bytes == 4 * tensor  # what it received, and of three Tanh


def test_memory_over_time_is_counted_in_bytes():
    """As many as stage activations are held, each as large as its stage keeps."""
    x = torch.randn(16, 8)
    model = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4)])
    with it.Pipeline(model, example=x, loss=square, ranks=2, microbatches=4) as pipe:
        pipe.step(x)
        report = pipe.report_value()

    for rank, row in enumerate(report.stages):
        counts = [held for _, held in report.measured_activations[rank]]
        held = [held for _, held in report.measured_memory[rank]]
        assert held == [count * row.activation_bytes for count in counts]


def test_a_run_of_its_own(tmp_path):
    """What a pipeline writes is what the command reads; nothing about it is missing."""
    x = torch.randn(16, 8)
    model = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4)])
    with it.Pipeline(
        model, example=x, loss=square, ranks=2, microbatches=4, schedule="zb-h1"
    ) as pipe:
        pipe.step(x)
        path = pipe.report(tmp_path / "report.json", title="mine")
        whole_s = pipe.timeline().makespan_s

    report = parse_report(path.read_text(), what="r")
    assert report.title == "mine"
    for rank, parts in enumerate(report.idle):
        idle_s = whole_s - report.measured.busy_of_rank_s(rank)
        assert parts.total_s == pytest.approx(idle_s, rel=1e-6)
    assert all(row.measured_weight_s is not None for row in report.stages)
    assert dict(report.configuration)["micro-batches"] == "4"
    assert {"torch", "python", "device", "threads per rank"} <= set(dict(report.environment))
    page = Page(report_html(replace(report, title="again")))
    assert "wait for W F I W" in page.text
