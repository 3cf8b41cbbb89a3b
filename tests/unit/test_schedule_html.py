"""Pages of schedules, without a browser."""

import re

from report_sample import timeline
from test_report import Page

from intandem.views.panel import Panel
from intandem.views.schedule_html import Table, comparison_html, schedule_html
from intandem.views.timeline_svg import WIDTH

EVIL = "<script>alert('x')</script>&\"'"
STEP = timeline(["0F0 0 1", "0B0 3 5"], ["1F0 1 2", "1B0 2 3"])
LONGER = timeline(["0F0 0 1", "0B0 7 9"], ["1F0 1 2", "1B0 2 7"])


def one(**changes):
    arguments = {
        "title": "1f1b",
        "facts": [("makespan", "5.00 s", "bubble ratio 40.0 %")],
        "activations": [((0.0, 1), (5.0, 0)), ((1.0, 1), (3.0, 0))],
    }
    return schedule_html(Panel("step", STEP), **(arguments | changes))


def two(**changes):
    arguments = {"title": "both", "length_s": 6.0}
    table = Table(["schedule", "makespan"], [["short", "5 s"], ["long", "9 s"]], ["a note"])
    panels = [Panel("short", STEP, "5 s"), Panel("long", LONGER, "9 s")]
    return comparison_html(panels, table, **(arguments | changes))


def test_one_says():
    """Figures, drawing, and what is held."""
    page = Page(one())

    assert "makespan 5.00 s bubble ratio 40.0 %" in page.text
    assert "peak 1" in page.text
    assert {"step-0F0", "step-1B0"} <= set(page.ids())


def test_two_say():
    """The table with its note, and each drawing with its name; ids are unique."""
    page = Page(two())

    assert "schedule makespan short 5 s long 9 s a note" in page.text
    assert "short 5 s" in page.text.partition("a note")[2]
    assert len(page.ids()) == len(set(page.ids()))


def test_what_comes_after_the_clock_is_not_drawn():
    """Boxes end at its edge, and those that start later are left out."""
    page = two()

    assert "long-1B0" in Page(page).ids()
    assert "long-0B0" not in Page(page).ids()
    for x, width in re.findall(r'<rect[^>]* x="([\d.]+)" y="\d+" width="([\d.]+)"', page):
        assert float(x) + float(width) <= WIDTH - 84 + 0.01


def test_everything_is_escaped():
    """A schedule may be called anything."""
    assert EVIL not in one(title=EVIL, facts=[(EVIL, EVIL, EVIL)])
    table = Table([EVIL, "b"], [[EVIL, EVIL]], [EVIL])
    assert EVIL not in comparison_html([Panel(EVIL, STEP, EVIL)], table, title=EVIL, length_s=5.0)


def test_they_need_nothing_else():
    """No address of anything outside the file."""
    for page in (one(), two()):
        assert not re.search(r"https?:|//[a-z]|@import|url\(", page)
