"""The HTML report in a real browser: no console message, and hover shows details."""

import re
import shutil
import subprocess
from dataclasses import replace

import pytest
from report_sample import full_report
from test_report_values import whole

from intandem.costs import CostModel
from intandem.schedules import build_schedule
from intandem.simulator import activations, simulate
from intandem.views.html import report_html
from intandem.views.panel import Panel
from intandem.views.report import StageRow
from intandem.views.schedule_html import Table, comparison_html, schedule_html

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome on PATH")

OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--no-first-run",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--enable-logging=stderr",
    "--virtual-time-budget=2000",
    "--dump-dom",
]

POINT_AT = """<script>
document.getElementById("%s").querySelector("rect").dispatchEvent(
  new PointerEvent("pointermove", {bubbles: true, clientX: 300, clientY: 200}));
</script>"""
PRESS = """<script>
document.querySelector("#measured-0F0").focus();
for (const key of %s) document.activeElement.dispatchEvent(
  new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
</script>"""
CLICK = """<script>document.getElementById("%s").click();</script>"""


WIDTH = """<p id="widths"></p><script>
document.querySelector("#widths").textContent = [...document.querySelectorAll(".scroll")]
  .filter(box => box.querySelector("table"))
  .map(box => `${box.scrollWidth}<=${box.clientWidth}`).join(" ");
</script>"""


@pytest.fixture
def browse(tmp_path):
    """Open a page; return its document after scripts ran, and the console's lines."""

    def run(html, fragment="", *options):
        page = tmp_path / "report.html"
        page.write_text(html, encoding="utf-8")
        command = [BROWSER, *OPTIONS, *options, f"--user-data-dir={tmp_path / 'profile'}"]
        done = subprocess.run(
            [*command, page.as_uri() + fragment],
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
        )
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    return run


def with_script(script):
    """The full report, its security policy as it is, and one more script at its end."""
    return report_html(full_report()).replace("</body>", script + "</body>")


def tip(document):
    """Text of the tooltip, or None while it is hidden."""
    found = re.search(r'<div id="tip"(?P<attributes>[^>]*)>(?P<text>[^<]*)</div>', document)
    return None if "hidden=" in found["attributes"].replace("aria-hidden", "") else found["text"]


def test_console_is_silent(browse):
    """Opening the report logs nothing, and nothing is shown before something is pointed at."""
    document, console = browse(report_html(full_report()))

    assert console == []
    assert tip(document) is None
    assert "<title>measured" not in document  # the script took over from the native tooltips


def test_console_is_heard(browse):
    """The check above would see an error."""
    _, console = browse(with_script("<script>nowhere.to.be.found();</script>"))

    assert len(console) == 1


def test_pointing_at_a_box_shows_it(browse):
    """Rank, action, start and duration appear; the micro-batch stands out in both timelines."""
    document, console = browse(with_script(POINT_AT % "measured-1B0"))

    assert console == []
    assert tip(document) == (
        "measured 1B0: rank 1, stage 1, micro-batch 0; starts 2.00 s, takes 2.50 s"
    )
    assert re.search(r'class="box F same" id="planned-0F0"', document)
    assert re.search(r'class="box F" id="planned-0F1"', document)


def test_the_widest_table_of_stages_fits(browse):
    """In 1,200 pixels, with every column that there can be and long numbers in each."""
    row = StageRow(
        *(12, (12,), "model.layers.33 … model.layers.40", 123_400_000, 493_600_000, 122_000_000),
        *(0.1234, 0.2345, 0.1345, 0.2456, 12_340_000),
        *(0.1234, 0.1345, 0.1111, 0.1222, 123_400_000_000, 246_800_000_000, 123_400_000),
    )
    whole = replace(row, measured_input_s=None, measured_weight_s=None)
    page = report_html(full_report(stages=(row, whole))).replace("</body>", WIDTH + "</body>")
    document, _ = browse(page, "", "--window-size=1200,900")
    widths = re.search(r'<p id="widths">(.*?)</p>', document)[1].replace("&lt;", "<").split()
    assert widths
    for found in widths:
        needed, there = map(int, found.split("<="))
        assert needed <= there <= 1200
        assert there > 1000


def test_a_link_names_a_box(browse):
    """``report.html#measured-0B1`` opens with that action's details."""
    document, console = browse(report_html(full_report()), "#measured-0B1")

    assert console == []
    assert tip(document).startswith("measured 0B1: rank 0")


@pytest.mark.parametrize(
    ("keys", "action"),
    [
        (["ArrowRight", "ArrowRight"], "0B0"),
        (["ArrowRight", "ArrowLeft"], "0F0"),
        (["ArrowRight", "ArrowDown"], "1F0"),
        (["ArrowUp"], "0F0"),
    ],
)
def test_keys_move_from_box_to_box(browse, keys, action):
    """Along a rank with left and right, across ranks with up and down."""
    document, console = browse(with_script(PRESS % keys))

    assert console == []
    assert tip(document).startswith(f"measured {action}:")


def test_switch_between_light_and_dark(browse):
    """The button turns the page over, whatever the system asks for."""
    once, _ = browse(with_script(CLICK % "scheme"))
    twice, _ = browse(with_script(2 * (CLICK % "scheme")))

    schemes = [re.search(r"<html[^>]*color-scheme: (\w+)", page)[1] for page in (once, twice)]
    assert sorted(schemes) == ["dark", "light"]


def test_zoom_stretches_time_in_all_drawings(browse):
    """Zoomed, every drawing of the clock is equally wider; a box twice as wide."""
    pages = [browse(with_script(script))[0] for script in ("", CLICK % "zoom")]

    boxes = [re.search(r'id="measured-1B0".*?<rect[^>]*width="([\d.]+)"', page) for page in pages]
    assert float(boxes[1][1]) == pytest.approx(2 * float(boxes[0][1]))
    frames = re.findall(r'viewBox="0 0 ([\d.]+) [\d.]+" data-left', pages[1])
    assert len(frames) == 3
    assert len(set(frames)) == 1


def test_pages_of_schedules(browse):
    """One schedule with overlapped pairs, and several side by side: silent, and they zoom."""
    schedule = build_schedule("dualpipe-v", num_ranks=2, num_microbatches=4)
    timeline = simulate(schedule, CostModel.uniform(4))
    panel = Panel("step", timeline)
    held = activations(timeline)
    one = schedule_html(panel, title="one", facts=[("makespan", "1 s", "")], activations=held)
    table = Table(["schedule", "makespan"], [["a", "1 s"], ["b", "2 s"]])
    panels = [Panel("a", timeline), Panel("b", timeline)]
    several = comparison_html(panels, table, title="two", length_s=0.8 * timeline.makespan_s)

    for page, name in ((one, "step"), (several, "b")):
        widths = []
        for script in ("", CLICK % "zoom"):
            document, console = browse(page.replace("</body>", script + "</body>"))
            assert console == []
            box = re.search(rf'id="{name}-0F3".*?<rect[^>]*width="([\d.]+)" height="14"', document)
            widths.append(float(box[1]))
        assert widths[1] == pytest.approx(2 * widths[0], rel=1e-3)
    assert browse(one, "#step-3B1")[0].count("together with 0F3") >= 1


def test_a_whole_report_and_its_files(browse):
    """With idle time, critical path and downloads: silent; links hold whole files."""
    document, console = browse(report_html(whole()))

    assert console == []
    assert document.count('class="mark"') == len(whole().critical_path)
    assert len(re.findall(r'<a download="[\w.]+" href="data:', document)) == 4
