"""Draws docs/images/report.png, from `tests/`: ``python -m pages.report_picture REPORT.html``.

The report is the one that ``intandem demo`` writes, drawn by headless Chromium, light unless
``--dark`` is given, down to the curves.
"""

import argparse
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

PICTURE = Path(__file__).parents[2] / "docs" / "images" / "report.png"
WIDTH = 1200
MEASURED = """<script>
const end = [...document.querySelectorAll("h2")].find(
  heading => heading.textContent.startsWith("Configuration"));
document.title = `height ${end.getBoundingClientRect().top - 10}`;
</script>"""
"""What the machine is comes after the curves, and is left out."""


def browse(page, *options):
    """What Chromium prints of a page."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))))
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={profile}", *options, page.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def draw(report, output, scheme):
    """Draw a report in a colour scheme, ``light`` or ``dark``."""
    html = report.read_text(encoding="utf-8")
    html = html.replace("</head>", f"<style>:root {{ color-scheme: {scheme} }}</style></head>")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(html.replace("</body>", MEASURED + "</body>"), encoding="utf-8")
        found = browse(page, f"--window-size={WIDTH},900", "--dump-dom")
        height = float(re.search(r"<title>height ([\d.]+)</title>", found)[1])
        page.write_text(html, encoding="utf-8")
        size = f"--window-size={WIDTH},{round(height)}"
        browse(page, size, f"--screenshot={output.resolve()}")


def main():
    """Draw what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("--output", type=Path, default=PICTURE)
    parser.add_argument("--dark", action="store_true")
    options = parser.parse_args()
    draw(options.report, options.output, "dark" if options.dark else "light")


if __name__ == "__main__":
    main()
