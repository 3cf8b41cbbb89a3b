"""``intandem show all``: every schedule at the same model, ranks, micro-batches and memory."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from textwrap import fill
from typing import TYPE_CHECKING

from intandem.cli.figures import Objective, Shown, share_above, show_order
from intandem.cli.order_files import Sizes, build_named, counted, num_stages_of, takes_of
from intandem.cli.tables import aligned
from intandem.errors import PipelineError, ScheduleError
from intandem.rules import check_memory
from intandem.schedules import schedule_names
from intandem.views import units
from intandem.views.panel import Panel

if TYPE_CHECKING:
    from intandem.cli.cost_options import CostOptions
    from intandem.cli.outputs import Outputs
    from intandem.machine import Machine

HEADINGS = (
    "schedule",
    "stages per rank",
    "makespan",
    "bubble",
    "longest rank",
    "bubble of it",
    "activations",
    "weights",
    "above bound",
)
OTHER_LENGTH = {"global": ("longest rank", "bubble of it"), "rank": ("makespan", "bubble")}
"""By objective, the headings of the other length."""
NOTE = (
    "activations: most that a rank holds, in P-ths of the model and a micro-batch; weights: copies "
    "of the model; above bound: of the {span}, against the least possible on its placement and in "
    "this memory"
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Schedules side by side.

    Attributes:
        sizes: that all were asked for.
        objective: by which they are sorted, shortest first.
        rows: those that fit.
        refused: name and reason of the others.
    """

    sizes: Sizes
    objective: Objective
    rows: tuple[Shown, ...]
    refused: tuple[tuple[str, str], ...]

    @property
    def title(self) -> str:
        """What is compared."""
        cap = self.sizes.max_activations
        limit = [] if cap is None else [f"at most {counted(cap, 'activation')}"]
        ranks = counted(self.sizes.num_ranks or 1, "rank")
        return " · ".join([ranks, counted(self.sizes.num_microbatches or 1, "micro-batch"), *limit])

    @property
    def length_s(self) -> float:
        """Seconds that drawings show: half as long again as the shortest, if any is longer."""
        spans = [shown.timeline.makespan_s for shown in self.rows]
        return min(max(spans), 1.5 * min(spans))

    def panels(self) -> list[Panel]:
        """Name, timeline and figures of each."""
        return [Panel(_name(shown), shown.timeline, self._figures(shown)) for shown in self.rows]

    def cells(self) -> list[tuple[str, ...]]:
        """The table's rows, as ``HEADINGS`` says."""
        return [_cells(shown) for shown in self.rows]

    def as_objects(self) -> list[dict[str, object]]:
        """For JSON: what ``show`` says of each, and the reasons of those that do not fit."""
        fit = [{**shown.as_object(), "peak_parts": shown.peak_parts} for shown in self.rows]
        others: list[dict[str, object]] = [
            {"schedule": name, "reason": why} for name, why in self.refused
        ]
        return [*fit, *others]

    def _figures(self, shown: Shown) -> str:
        makespan_s = shown.timeline.makespan_s
        cut = "" if makespan_s <= self.length_s else ", more than is drawn"
        return (
            f"makespan {units.duration(makespan_s)}{cut} · bubble ratio "
            f"{units.share(shown.timeline.bubble_ratio)} · {counted(_parts(shown), 'activation')}"
        )


def compare(
    sizes: Sizes, costs: CostOptions, objective: Objective, machine: Machine | None = None
) -> Comparison:
    """Build and simulate every schedule there is, on ``machine`` if there is one.

    Raises:
        ScheduleError: if none fits; says why of each.
    """
    rows: list[Shown] = []
    refused: list[tuple[str, str]] = []
    for name in schedule_names():
        try:
            rows.append(_shown(name, sizes, costs, objective, machine))
        except (PipelineError, ValueError) as error:
            refused.append((name, str(error).splitlines()[0]))
    if not rows:
        reasons = "\n".join(f"  {name}: {why}" for name, why in refused)
        msg = f"no schedule fits {sizes.num_ranks} ranks and these limits:\n{reasons}"
        raise ScheduleError(msg)
    rows.sort(key=lambda shown: (round(shown.span_s, 9), max(shown.peak_parts)))
    return Comparison(sizes, objective, tuple(rows), tuple(refused))


def _shown(
    name: str,
    sizes: Sizes,
    costs: CostOptions,
    objective: Objective,
    machine: Machine | None,
) -> Shown:
    num_ranks = sizes.num_ranks or 1
    if "stages_per_rank" not in takes_of(name):
        sizes = replace(sizes, stages_per_rank=None)
    num_stages = num_stages_of(name, sizes)
    if sizes.max_activations is not None:
        cap = sizes.max_activations * num_stages // num_ranks
        sizes = replace(sizes, max_activations=cap)
    order = build_named(name, sizes, lambda count: costs.of_model(count, num_ranks))
    if order.is_forward_only:
        msg = "runs forwards only, so there is nothing to compare"
        raise ScheduleError(msg)
    if sizes.max_activations is not None and (over := check_memory(order, sizes.max_activations)):
        msg = f"over the cap: rank {over[0].rank} slot {over[0].slot}, {over[0].message}"
        raise ScheduleError(msg)
    found = costs.of_model(num_stages, num_ranks)
    return show_order(order, found, objective, sizes.max_activations, machine)


def write_comparison(comparison: Comparison, outputs: Outputs) -> None:
    """Write one picture of all.

    Raises:
        OSError: if a file cannot be written.
    """
    title = f"Schedules · {comparison.title}"
    if outputs.svg:
        from intandem.views.svg import comparison_svg_file

        text = comparison_svg_file(comparison.panels(), title=title, length_s=comparison.length_s)
        outputs.svg.write_text(text, "utf-8")
    if outputs.html:
        from intandem.views.schedule_html import Table, comparison_html

        left_out = [f"{name} does not fit: {why}" for name, why in comparison.refused]
        table = Table(HEADINGS, comparison.cells(), [_note(comparison), *left_out])
        text = comparison_html(
            comparison.panels(), table, title=title, length_s=comparison.length_s
        )
        outputs.html.write_text(text, "utf-8")


def comparison_text(comparison: Comparison, columns: int) -> str:
    """Return the picture, the table, and what did not fit."""
    from intandem.views.text import legend_ansi, timeline_ansi, timeline_text

    in_color = sys.stdout.isatty()
    draw = timeline_ansi if in_color else timeline_text
    drawings = []
    for panel in comparison.panels():
        drawing = draw(panel.timeline, columns=columns, length_s=comparison.length_s)
        rows, _, axis = drawing.rpartition("\n")
        drawings.append(f"{panel.name}\n{rows}")
    legend = max((legend_ansi(shown.timeline) for shown in comparison.rows), key=len)
    head = comparison.title + (f"   {legend}" if in_color else "")
    note = fill(_note(comparison), columns)
    parts = [head, *drawings, axis, _table(comparison, columns), note]
    if comparison.refused:
        width = max(len(name) for name, _ in comparison.refused)
        lines = (f"  {name:<{width}}  {why}" for name, why in comparison.refused)
        parts.append("\n".join(["do not fit:", *lines]))
    return "\n\n".join(parts)


def _table(comparison: Comparison, columns: int) -> str:
    """As much as fits: first without the length that was not asked for."""
    every = [tuple(h.rpartition(" ")[::2]) for h in HEADINGS]
    lines = [tuple(h[0] for h in every), tuple(h[1] for h in every), *comparison.cells()]
    text = aligned(lines)
    if max(map(len, text)) > columns:
        other = OTHER_LENGTH[comparison.objective]
        keep = [i for i, heading in enumerate(HEADINGS) if heading not in other]
        text = aligned([tuple(line[i] for i in keep) for line in lines])
    return "\n".join(text)


def _cells(shown: Shown) -> tuple[str, ...]:
    timeline = shown.timeline
    return (
        _name(shown),
        f"{shown.program.placement.num_stages / shown.program.num_ranks:g}",
        units.duration(timeline.makespan_s, more_digits=1),
        units.share(timeline.bubble_ratio),
        units.duration(timeline.rank_span_s, more_digits=1),
        units.share(timeline.rank_bubble_ratio),
        _parts(shown),
        f"{shown.weight_copies}\N{MULTIPLICATION SIGN}",
        share_above(shown.above_bound),
    )


def _name(shown: Shown) -> str:
    return shown.program.name


def _parts(shown: Shown) -> str:
    return f"{max(shown.peak_parts):.3g}"


def _note(comparison: Comparison) -> str:
    span = "makespan" if comparison.objective == "global" else "longest rank"
    return NOTE.format(span=span)
