"""Writes docs/schedules.md and its pictures: ``python -m pages.schedules``, run from ``tests/``."""

import inspect
import re
from pathlib import Path

from intandem.cli.compare import HEADINGS, compare
from intandem.cli.cost_options import CostOptions
from intandem.cli.figures import show_order
from intandem.cli.order_files import Sizes, build_named
from intandem.schedules import schedule_names
from intandem.schedules.registry import FAMILIES
from intandem.views import units
from intandem.views.svg import picture_svg_file
from pages.claims import claims
from pages.families import ABOUT, WHICH_WHEN

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "schedules.md"
PICTURES = DOCS / "images" / "schedules"
P, M = 4, 8
UNIT = "F=1,I=1,W=1"
SLOW = 0.5
"""Seconds of a message, where transfers take time."""


def built(name):
    """Figures of a schedule of the page's size, of a model whose P-ths take a second per kind."""
    costs = CostOptions(UNIT)
    order = build_named(name, Sizes(P, M), lambda count: costs.of_model(count, P))
    return show_order(order, costs.of_model(order.num_stages, P), "global")


def table(headings, rows):
    """Lines of a Markdown table; the first column is text."""
    line = "| " + " | ".join(headings) + " |"
    rule = "|---|" + "---:|" * (len(headings) - 1)
    return [line, rule, *("| " + " | ".join(row) + " |" for row in rows)]


def side_by_side(transfer_s):
    """Every schedule at once, as ``intandem show all`` has it."""
    found = compare(Sizes(P, M), CostOptions(UNIT, transfer_s), "global")
    rows = ([f"[`{row[0]}`](#{row[0]})", *row[1:]] for row in found.cells())
    return table(HEADINGS, rows)


def objectives():
    """Both lengths of some schedules."""
    names = ("gpipe", "1f1b", "zb-h1", "zb-h2", "zb-v", "dualpipe")
    rows = []
    for name in names:
        if name in schedule_names():
            found = built(name)
            shown = found.timeline
            rows.append(
                [
                    f"`{name}`",
                    units.duration(shown.makespan_s),
                    units.share(shown.bubble_ratio),
                    units.duration(shown.rank_span_s),
                    units.share(shown.rank_bubble_ratio),
                    f"{max(found.peak_parts):.3g}",
                ]
            )
    heads = ["schedule", "makespan", "bubble", "longest rank", "bubble of it", "activations"]
    return table(heads, rows)


def which_when():
    """Advice, of the schedules that there are."""
    rows = []
    for have, names, more in WHICH_WHEN:
        known = ", ".join(f"`{name}`" for name in names if name in schedule_names())
        if known or more:
            rows.append([have, "; ".join(filter(None, [known, more]))])
    return ["| you have | take |", "|---|---|", *(f"| {have} | {take} |" for have, take in rows)]


def prose(text):
    """Markdown of a docstring: literal blocks are indented there too."""
    text = re.sub(r"::\n\n(?=    )", ":\n\n", inspect.cleandoc(text))
    text = re.sub(r"``([^`]+)``", lambda match: linked(match[1]), text)
    return re.sub(r"(https://\S+?)([,.;:]?)(?=\s|$)", r"<\1>\2", text)


def linked(name):
    """A literal; one that names a module of the schedules leads there."""
    source = DOCS.parent / "src" / "intandem" / "schedules" / f"{name}.py"
    if name in schedule_names() or not source.is_file():
        return f"`{name}`"
    return f"[`{name}`](../src/intandem/schedules/{name}.py)"


def section(family, told):
    """Picture, figures, source and when to use it."""
    about, found = ABOUT[family.name], built(family.name)
    shown = found.timeline
    lines = [f"### {family.name}", "", f"![{family.name}](images/schedules/{family.name}.svg)", ""]
    bubble = f"makespan {units.duration(shown.makespan_s)}, {units.share(shown.bubble_ratio)} idle"
    if round(shown.rank_span_s, 9) != round(shown.makespan_s, 9):
        own = f"{units.duration(shown.rank_span_s)}, {units.share(shown.rank_bubble_ratio)} idle"
        bubble += f"; longest rank {own}"
    held = f"a rank holds {max(found.peak_parts):.3g} at most"
    copies = "" if found.weight_copies == 1 else f", and {found.weight_copies} P-ths of the weights"
    lines += [f"* Drawn: {bubble}; {held}{copies}.", *formula_line(about, found)]
    lines += [f"* Use it: {about.when}", ""]
    module = inspect.getmodule(family.build)
    if module in told:
        return [*lines, f"Described under [{told[module]}](#{told[module]}).", ""]
    told[module] = family.name
    return [*lines, prose(module.__doc__), ""]


def formula_line(about, found):
    """The closed form, if the simulation agrees with it."""
    if about.ratio is None:
        return []
    shown = found.timeline
    expected = about.ratio(P, M, found.program.placement.num_stages // P)
    simulated = shown.rank_bubble_ratio if about.per_rank else shown.bubble_ratio
    if abs(expected - simulated) > 1e-9:
        msg = f"{found.program.name}: {about.formula} is {expected}, simulated {simulated}"
        raise ValueError(msg)
    whose = " of the longest rank" if about.per_rank else ""
    return [f"* Bubble ratio{whose}: {about.formula}; here {units.share(expected)}."]


def render():
    """Return the page."""
    told = {}
    sections = [line for family in FAMILIES for line in section(family, told)]
    parts = {
        "count": len(FAMILIES),
        "p": P,
        "m": M,
        "slow": SLOW,
        "equal": "\n".join(side_by_side(0.0)),
        "slow_table": "\n".join(side_by_side(SLOW)),
        "objectives": "\n".join(objectives()),
        "which_when": "\n".join(which_when()),
        "sections": "\n".join(sections).rstrip(),
        "claims": claims(),
    }
    template = (Path(__file__).parent / "schedules.md.in").read_text(encoding="utf-8")
    return template.format(**parts)


def pictures():
    """Return the pictures by file name."""
    found = {}
    for name in schedule_names():
        shown = built(name)
        svg = picture_svg_file(shown.timeline, title=shown.title)
        found[f"{name}.svg"] = svg
    return found


def main():
    """Write all of it, and remove pictures of schedules that are gone."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    drawn = pictures()
    for old in PICTURES.glob("*.svg"):
        if old.name not in drawn:
            old.unlink()
    for name, svg in drawn.items():
        (PICTURES / name).write_text(svg, encoding="utf-8")
    PAGE.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
