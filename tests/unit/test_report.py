"""What the HTML report says, without a browser."""

import re
from dataclasses import fields
from html.parser import HTMLParser

import pytest
from report_sample import MEASURED, PLANNED, full_report, timeline

from intandem.views import units
from intandem.views.html import report_html
from intandem.views.report import LossCurve, Report, StageRow, Throughput
from intandem.views.timeline_svg import RIGHT, WIDTH, Clock, timeline_svg

VOID = {"meta", "link"}
EVIL = "<script>alert('x')</script>&\"'"


class Page(HTMLParser):
    """Text of a page and the elements in it; complains about tags that do not match."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.open, self.words = [], [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def ids(self):
        return [attrs["id"] for _, attrs in self.elements if "id" in attrs]


@pytest.mark.parametrize(
    "expected",
    [
        "1f1b · 2 ranks · 2 micro-batches",
        "step time 512 ms",
        "speed 1.86\N{MULTIPLICATION SIGN}",
        "throughput 7.50 k/s bytes, median",
        "makespan 10.0 s planned 9.00 s (+11.1 %)",
        "bubble ratio 35.0 % planned 33.3 %",
        "loss 2.900 held-out, nats per byte; byte entropy 3.230",
        "gradients equal one process: max relative error 1.0e-15",
        "Planned makespan 9.00 s · bubble ratio 33.3 %",
        "Measured makespan 10.0 s · bubble ratio 35.0 %",
        "peak 2 / 2",
        "tokens … blocks.2 1.35 M 5.15 MiB 97 % 13.5 ms plan 12.0 ms \N{EN DASH} plan 24.0 ms",
        "byte entropy 3.23",
        "torch 2.13.0 cores 2",
    ],
)
def test_says(expected):
    """Every fact is on the page as text, so it is there without scripts and without colour."""
    assert expected in Page(report_html(full_report())).text


def test_boxes_of_both_timelines():
    """Each action has a box in each timeline, named by the action, unique on the page."""
    ids = Page(report_html(full_report())).ids()

    for name, drawn in (("planned", PLANNED), ("measured", MEASURED)):
        assert {f"{name}-{span.action}" for span in drawn.spans} <= set(ids)
    assert len(ids) == len(set(ids))


def test_same_time_scale():
    """A second is as wide in one timeline as in the other, and both begin at the left edge."""
    html = report_html(full_report())
    boxes = {
        match["id"]: (float(match["x"]), float(match["width"]))
        for match in re.finditer(
            r'id="(?P<id>\w+-\w+)".*?<rect x="(?P<x>[\d.]+)" y="\d+" width="(?P<width>[\d.]+)"',
            html,
        )
    }

    assert boxes["planned-0F0"] == boxes["measured-0F0"]
    assert boxes["measured-1B0"][1] == pytest.approx(1.25 * boxes["planned-1B0"][1], abs=0.02)


def test_box_says_letter_and_number_and_details():
    """Colour is never the only sign, and what hover shows is there for screen readers."""
    svg = timeline_svg(MEASURED, Clock(10.0), name="measured")

    assert ">F1</text>" in svg
    assert (
        'aria-label="measured 1B0: rank 1, stage 1, micro-batch 0; starts 2.00 s, takes 2.50 s"'
        in svg
    )


def test_updates_are_drawn_with_the_measured_step():
    """Each once, at their time, within the drawing."""
    html = report_html(full_report(title=""))
    found = re.findall(
        r'aria-label="optimizer: ([^"]*)".*?<rect x="([\d.]+)".*? width="([\d.]+)"', html
    )

    assert [text for text, _, _ in found] == ["rank 0; takes 500 ms"]
    x, width = map(float, found[0][1:])
    assert x + width == pytest.approx(WIDTH - RIGHT)


def test_second_stage_of_a_rank_looks_different():
    """With two stages on a rank, the later one's boxes are marked."""
    svg = timeline_svg(timeline(["0F0 0 1", "1F0 1 2"]), Clock(2.0), name="planned")

    assert re.findall(r'class="([\w ]+)" id="planned-(\w+)"', svg) == [
        ("box F", "0F0"),
        ("box F k1", "1F0"),
    ]


def test_nothing_is_drawn_outside():
    """Boxes end within the drawing."""
    svg = timeline_svg(MEASURED, Clock(10.0), name="measured")

    for x, width in re.findall(r'<rect[^>]* x="([\d.]+)" y="\d+" width="([\d.]+)"', svg):
        assert float(x) + float(width) <= WIDTH


def test_needs_nothing_else():
    """No address of anything outside the file, and the page forbids loading any."""
    html = report_html(full_report())

    assert not re.search(r"https?:|//[a-z]|@import|url\(", html)
    assert "default-src 'none'" in html
    links = {attrs["href"] for _, attrs in Page(html).elements if "href" in attrs}
    assert all(link.startswith("data:") for link in links)
    assert not [attrs for _, attrs in Page(html).elements if "src" in attrs]


def test_escapes_what_users_name():
    """No text of a report becomes markup."""
    stage = StageRow(0, (0,), EVIL, 1, 4)
    loss = LossCurve(((0, 1.0),), ((0, 1.0),), EVIL, 2.0, EVIL)
    html = report_html(
        full_report(
            title=EVIL,
            schedule=EVIL,
            stages=(stage,),
            loss=loss,
            gradient_equality=EVIL,
            environment=((EVIL, EVIL),),
        )
    )

    assert "<script>alert" not in html
    page = Page(html)
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert page.text.count(EVIL) >= 7


def test_dollar_signs_stay():
    """Names are not read as template fields."""
    assert "$main $$" in Page(report_html(full_report(title="$main $$"))).text


@pytest.mark.parametrize(
    "missing", [field.name for field in fields(Report) if field.default in (None, ())]
)
def test_what_is_not_known_is_left_out(missing):
    """Every optional part may be absent."""
    report = full_report(**{missing: Report.__dataclass_fields__[missing].default})

    assert "None" not in Page(report_html(report)).text


@pytest.mark.parametrize(("equal", "css_class"), [(True, "equal"), (False, "differs")])
def test_unequal_gradients_do_not_look_proven(equal, css_class):
    """The sign before the line is that of the verdict."""
    html = report_html(full_report(gradients_equal=equal))

    assert f'<p class="{css_class}">gradients' in html


def test_a_stage_on_several_ranks():
    """All of them are named."""
    stages = (StageRow(0, (0, 3), "tokens", 10, 40), StageRow(1, (1, 2), "head", 10, 40))

    text = Page(report_html(full_report(stages=stages))).text

    assert "stage ranks blocks" in text
    assert "stage rank blocks" in Page(report_html(full_report())).text
    assert "0 0, 3 tokens 10 40 B" in text


def test_a_single_step():
    """Is a point, as a line through it is not to be seen."""
    curves = {"loss": LossCurve(((0, 5.5),)), "throughput": Throughput(((0, 7000.0),), "bytes")}

    html = report_html(full_report(**curves))

    assert "<title>training at step 0: 5.5</title>" in html
    assert "<title>bytes at step 0: 7000</title>" in html


def test_a_plan_alone():
    """A page can show a schedule that has not run."""
    text = Page(report_html(Report("1f1b", "1f1b", 2, planned=PLANNED))).text

    assert "bubble ratio 33.3 % planned" in text
    assert "Measured" not in text


def test_nothing_at_all():
    """An empty report is a page too."""
    assert "1f1b · 0 ranks" in Page(report_html(Report("nothing", "1f1b", 2))).text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (8.5e-4, "850 µs"),
        (9.996e-4, "1.00 ms"),
        (0.0123, "12.3 ms"),
        (0.9999, "1.00 s"),
        (1.25, "1.25 s"),
        (123.4, "123 s"),
    ],
)
def test_durations(seconds, text):
    """Three digits, in the unit that keeps them before the point."""
    assert units.duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (7, "7"), (999, "999"), (2_743_296, "2.74 M"), (7e10, "70.0 B")]
)
def test_counts(number, text):
    """Small counts are exact."""
    assert units.count(number) == text


@pytest.mark.parametrize("high", [0.003, 1.0, 7.7, 123.0, 1e6])
@pytest.mark.parametrize("about", [5, 10])
def test_ticks_are_round_and_about_as_many(high, about):
    """Ticks lie within the axis, evenly, and neither crowd nor starve it."""
    found = units.ticks(0, high, about=about)

    assert 0 == found[0] < found[-1] <= high
    assert about / 2 <= len(found) <= 2 * about
