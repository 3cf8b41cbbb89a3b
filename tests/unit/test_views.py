"""Drawings of a timeline: for a terminal and as SVG."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from order_samples import sched, split_backwards, valid_schedules

from intandem.costs import CostModel
from intandem.ir import Placement, Timeline
from intandem.schedules import build_schedule
from intandem.simulator import simulate
from intandem.views import text as text_view
from intandem.views.svg import timeline_svg_file
from intandem.views.text import timeline_ansi, timeline_text
from intandem.views.units import time_tick

SVG = "{http://www.w3.org/2000/svg}"
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


def one_f_one_b(p, m):
    return simulate(build_schedule("1f1b", num_ranks=p, num_microbatches=m), CostModel.uniform(p))


class TestText:
    def test_two_ranks(self):
        """Letters and numbers, dashes for what goes on, dots for idle, seconds below."""
        assert timeline_text(one_f_one_b(2, 3)).splitlines() == [
            "rank 0  F0 F1 ......B0--- F2 B1--- ...B2--- ",
            "rank 1  ...F0 B0--- F1 B1--- F2 B2--- ......",
            "        0              5 s            10 s",
        ]

    def test_the_drawing_in_the_docstring(self):
        """The module's picture is what the function draws."""
        drawn = timeline_text(one_f_one_b(2, 3)).splitlines()
        picture = [line.strip() for line in text_view.__doc__.splitlines() if "rank " in line[:9]]
        assert [line.strip() for line in drawn[:2]] == picture

    def test_a_long_step_goes_on_below(self):
        """Bands of equal length; nothing is wider than asked."""
        text = timeline_text(one_f_one_b(4, 8), columns=60)

        assert len(text.split("\n\n")) == 2
        assert max(map(len, text.splitlines())) <= 60
        joined = "".join(re.findall(r"^rank 3  (.*)$", text, re.M))
        assert re.findall(r"[FB]\d", joined) == [f"{k}{mb}" for mb in range(8) for k in "FB"]

    def test_a_very_long_step_gives_up_numbers(self):
        """One band, letters only."""
        text = timeline_text(one_f_one_b(4, 200), columns=80)

        assert len(text.split("\n\n")) == 1
        assert max(map(len, text.splitlines())) <= 80

    def test_stages_are_named_where_a_rank_has_several(self):
        """F0 alone would be two things."""
        schedule = sched("0F0 3F0 3B0 0B0", "1F0 2F0 2B0 1B0", placement=Placement.vee(2))

        text = timeline_text(simulate(schedule, CostModel.uniform(4)))

        assert text.splitlines()[0].startswith("rank 0  0F0 ")
        assert "3B0-" in text

    def test_colours_change_nothing_else(self):
        """Without its escapes the coloured drawing is the plain one."""
        timeline = simulate(
            split_backwards(build_schedule("1f1b", num_ranks=2, num_microbatches=3)),
            CostModel.uniform(2),
        )

        coloured = timeline_ansi(timeline)

        assert "\x1b[" in coloured
        assert ESCAPE.sub("", coloured) == timeline_text(timeline)

    @given(valid_schedules, st.integers(40, 130), st.floats(1e-7, 100.0))
    @settings(max_examples=60, deadline=None)
    def test_fits_any_width(self, schedule, columns, forward_s):
        """Any schedule and any speed, whatever does not fit is left out."""
        timeline = simulate(schedule, CostModel.uniform(schedule.num_stages, forward_s))

        lines = timeline_text(timeline, columns=columns).splitlines()

        assert max(map(len, lines)) <= columns
        assert sum(line.startswith("rank 0") for line in lines) >= 1

    def test_nothing_ran(self):
        """An empty timeline is drawn, not divided by."""
        assert timeline_text(Timeline((), 1)).startswith("rank 0  ")

    def test_too_narrow(self):
        """The message has the number."""
        with pytest.raises(ValueError, match="39 columns are too few"):
            timeline_text(one_f_one_b(1, 1), columns=39)


class TestSvg:
    def parse(self, timeline, title="a title"):
        return ElementTree.fromstring(timeline_svg_file(timeline, title=title))

    def test_a_box_for_every_action(self):
        """Each with a tooltip that says stage, rank and times."""
        timeline = one_f_one_b(3, 4)
        boxes = [g for g in self.parse(timeline).iter(f"{SVG}g") if "data-mb" in g.attrib]

        assert len(boxes) == len(timeline.spans) == 24
        tip = boxes[0].find(f"{SVG}title").text
        assert "0F0: rank 0, stage 0, micro-batch 0" in tip

    def test_labels_where_they_fit(self):
        """Letter and micro-batch."""
        texts = {t.text for t in self.parse(one_f_one_b(2, 3)).iter(f"{SVG}text")}

        assert {"F0", "B2", "rank 1", "a title", "forward", "backward", "idle", "5 s"} <= texts

    def test_legend_has_what_occurs(self):
        """No B in a schedule that splits all backwards."""
        schedule = split_backwards(build_schedule("gpipe", num_ranks=2, num_microbatches=2))

        root = self.parse(simulate(schedule, CostModel.uniform(2)))
        texts = {t.text for t in root.iter(f"{SVG}text")}

        assert {"backward for inputs", "backward for weights"} <= texts
        assert "backward" not in texts

    def test_titles_are_escaped(self):
        """A schedule may be called anything."""
        title = '<b> & "co"'

        assert self.parse(one_f_one_b(1, 1), title).find(f"{SVG}title").text == title

    def test_light_and_dark(self):
        """Colours follow the reader's system; nothing is fetched."""
        text = timeline_svg_file(one_f_one_b(2, 2), title="x")

        assert "prefers-color-scheme: dark" in text
        assert "#0072B2" in text
        assert text.count("http") == 1

    def test_nothing_ran(self):
        """An empty timeline is drawn, not divided by."""
        self.parse(Timeline((), 2))


def test_an_axis_of_hours_is_in_seconds():
    """Costs of thousands of seconds are drawn as well."""
    assert time_tick(20000.0, 42000.0) == "20000 s"
