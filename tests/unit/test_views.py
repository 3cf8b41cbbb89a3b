"""Drawings of a timeline: for a terminal and as SVG."""

import json
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from order_samples import sched, split_backwards, valid_schedules
from report_sample import timeline

from intandem.costs import CostModel
from intandem.ir import Placement, Timeline
from intandem.schedules import build_schedule
from intandem.simulator import simulate
from intandem.views import text as text_view
from intandem.views.chrome_trace import chrome_trace
from intandem.views.colors import LOOKS, SHADES, ink, shade
from intandem.views.panel import Panel
from intandem.views.passes import darker_note, groups, passes_of
from intandem.views.svg import comparison_svg_file, picture_svg_file, timeline_svg_file
from intandem.views.text import legend_ansi, timeline_ansi, timeline_text
from intandem.views.units import time_tick

SVG = "{http://www.w3.org/2000/svg}"
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


def one_f_one_b(p, m):
    return simulate(build_schedule("1f1b", num_ranks=p, num_microbatches=m), CostModel.uniform(p))


TOGETHER = timeline(
    ["0F0 0 1", "3B9 1 4", "0F1 1 4", "0B1 4 6"], ["1F0 0 1", "2F9 1 2", "2B9 2 4", "1B1 4 6"]
)
"""A V of two ranks, part of it: 3B9 and 0F1 ran together."""

TWO_WAYS = timeline(
    ["0F0 0 1", "1F1 1 2", "1B1 2 4", "0B0 4 6"], ["0F1 0 1", "1F0 1 2", "1B0 2 4", "0B1 4 6"]
)
"""Micro-batch 0 goes down the ranks, micro-batch 1 up."""


class TestPasses:
    def indices(self, timeline):
        passes = passes_of(timeline)
        return {str(s.action): passes.index(s) for s in timeline.spans}, passes

    def test_one_stage_per_rank(self):
        """There is nothing to tell apart."""
        found, passes = self.indices(one_f_one_b(3, 4))

        assert set(found.values()) == {0}
        assert (passes.num_passes, passes.meanings) == (1, ())

    def test_stages_of_a_rank(self):
        """Each rank's own stages, ascending."""
        found, passes = self.indices(TOGETHER)

        assert [found[a] for a in ("0F0", "1F0", "2F9", "3B9")] == [0, 0, 1, 1]
        assert (passes.num_replicas, passes.num_passes) == (1, 2)
        assert passes.meanings == ("a rank's later stages",)

    def test_replicas(self):
        """The way of a micro-batch decides, not the stage: 0F1 on rank 1 is of the other copy."""
        found, passes = self.indices(TWO_WAYS)

        assert [found[a] for a in ("0F0", "1F0", "0F1", "1F1")] == [0, 0, 1, 1]
        assert (passes.num_replicas, passes.num_places) == (2, 1)
        assert passes.meanings == ("the other copy of the model",)

    def test_the_note_names_every_meaning_once(self):
        """A page of several timelines has one legend."""
        note = darker_note([TOGETHER, TWO_WAYS, TOGETHER])

        assert note == "darker: a rank's later stages or the other copy of the model"
        assert darker_note([one_f_one_b(2, 3)]) == ""

    def test_groups(self):
        """What overlaps in time is one group; what touches is not."""
        words = [[str(s.action) for s in group] for group in groups(TOGETHER.of_rank(0))]

        assert words == [["0F0"], ["3B9", "0F1"], ["0B1"]]
        assert all(len(group) == 1 for group in groups(one_f_one_b(2, 3).of_rank(0)))

    def test_letters_can_be_read_on_every_shade(self):
        """WCAG asks for a contrast of 4.5 to 1; kinds keep apart in every shade."""

        def light(color):
            rgb = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
            parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
            return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), parts, strict=True))

        for look in LOOKS.values():
            for index in range(len(SHADES)):
                ground = shade(look.color, index)
                lights = sorted((light(ground), light(ink(ground))))
                assert (lights[1] + 0.05) / (lights[0] + 0.05) >= 4.5, (look.name, index)


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

    def test_actions_that_ran_together_share_a_cell(self):
        """With an ampersand between them, in plain text too."""
        assert timeline_text(TOGETHER).splitlines() == [
            "rank 0  0F0 3B9--&0F1-- 0B1---- ",
            "rank 1  1F0 2F9 2B9---- 1B1---- ",
            "        0",
        ]

    def test_passes_have_shades(self):
        """The same kind in two colours, and a legend that says why."""
        drawn = timeline_ansi(TOGETHER)

        assert drawn.index("0F0 ") < drawn.index("2F9 ")
        assert drawn.split("0F0 ")[0][-4:] != drawn.split("2F9 ")[0][-4:]
        assert ESCAPE.sub("", legend_ansi(TOGETHER)) == " F    B    F  F  a rank's later stages"
        assert ESCAPE.sub("", legend_ansi(one_f_one_b(2, 3))) == " F    B "

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

    def boxes(self, root):
        return {
            (g.get("id") or "").removeprefix("step-"): g
            for g in root.iter(f"{SVG}g")
            if "box" in g.get("class", "")
        }

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

    def test_actions_that_ran_together_share_a_row(self):
        """Half its height each, and each description names the other."""
        boxes = self.boxes(self.parse(TOGETHER))
        rects = [boxes[name].find(f"{SVG}rect").attrib for name in ("0F0", "3B9", "0F1")]

        assert [(float(r["y"]), float(r["height"])) for r in rects] == [(0, 28), (0, 14), (14, 14)]
        assert rects[1]["x"] == rects[2]["x"]
        assert boxes["0F1"].get("aria-label").endswith("takes 3.00 s; together with 3B9")

    def test_idle_share_counts_time_together_once(self):
        """Rank 0 of the sample is busy all the time."""
        texts = [t.text for t in self.parse(TOGETHER).iter(f"{SVG}text")]

        assert texts.count("idle 0.0 %") == 2

    def test_passes_have_shades_and_descriptions(self):
        """Which are explained: in the legend and, for replicas, in the description."""
        root = self.parse(TWO_WAYS)
        boxes = self.boxes(root)

        assert boxes["0F0"].get("class") == "box F"
        assert boxes["0F1"].get("class") == "box F k1"
        assert "micro-batch 1, replica 1;" in boxes["0F1"].get("aria-label")
        assert "darker: the other copy of the model" in {t.text for t in root.iter(f"{SVG}text")}

    def test_a_picture_has_the_same_boxes(self):
        """Without ids and descriptions."""
        root = ElementTree.fromstring(picture_svg_file(TOGETHER, title="x"))
        rects = [
            g.find(f"{SVG}rect").attrib for g in root.iter(f"{SVG}g") if "box" in g.get("class")
        ]

        described = self.boxes(self.parse(TOGETHER)).values()
        assert rects == [g.find(f"{SVG}rect").attrib for g in described]
        assert "aria-label" not in picture_svg_file(TOGETHER, title="x")

    def test_several_timelines_share_one_scale(self):
        """One below the other; a second is as wide everywhere; ids are unique."""
        panels = [Panel("short", one_f_one_b(2, 3), "as it is"), Panel("long", one_f_one_b(2, 6))]

        text = comparison_svg_file(panels, title="two")
        root = ElementTree.fromstring(text)

        widths = {
            g.get("id"): g.find(f"{SVG}rect").get("width")
            for g in root.iter(f"{SVG}g")
            if g.get("id")
        }
        assert len(widths) == 12 + 24
        assert widths["short-0F0"] == widths["long-0F0"]
        tops = [float(svg.get("y")) for svg in root.iter(f"{SVG}svg") if svg.get("y")]
        heights = [float(svg.get("height")) for svg in root.iter(f"{SVG}svg") if svg.get("y")]
        assert tops[1] >= tops[0] + heights[0]
        assert float(root.get("height")) >= tops[1] + heights[1]
        assert "as it is" in text

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


class TestChromeTrace:
    def events(self, timeline, **arguments):
        return json.loads(chrome_trace(timeline, title="a step", **arguments))["traceEvents"]

    def test_an_event_for_every_action(self):
        """On its rank's thread, in microseconds, with what it is."""
        found = [e for e in self.events(one_f_one_b(2, 3)) if e["ph"] == "X"]

        assert len(found) == 12
        assert (found[0]["name"], found[0]["ts"], found[0]["dur"]) == ("0F0", 0.0, 1e6)
        assert found[0]["args"] == {"kind": "F", "stage": 0, "microbatch": 0, "replica": 0}
        assert {e["tid"] for e in found} == {1, 2}

    def test_threads_are_named(self):
        """As the ranks; the process has the title."""
        names = [e["args"]["name"] for e in self.events(one_f_one_b(2, 3)) if "name" in e["args"]]

        assert names == ["a step", "rank 0", "rank 1"]

    def test_events_of_a_thread_do_not_overlap(self):
        """Viewers would nest or drop them."""
        by_thread = {}
        for event in self.events(TOGETHER):
            if event["ph"] == "X":
                by_thread.setdefault(event["tid"], []).append(event)

        assert len(by_thread) == 3
        for events in by_thread.values():
            for before, after in pairwise(events):
                assert before["ts"] + before["dur"] <= after["ts"]

    def test_counters(self):
        """What each rank holds, at the times at which it changes."""
        found = self.events(one_f_one_b(1, 1), activations=(((0.0, 1), (3.0, 0)),))

        counters = [(e["ts"], e["args"]["held"]) for e in found if e["ph"] == "C"]
        assert counters == [(0.0, 1), (3e6, 0)]


def test_an_axis_of_hours_is_in_seconds():
    """Costs of thousands of seconds are drawn as well."""
    assert time_tick(20000.0, 42000.0) == "20000 s"
