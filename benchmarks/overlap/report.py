"""Table and plot of what steps without a barrier gain."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from common.plots import COLORS, panels
from common.ratios import Ratio, paired_ratio
from common.tables import markdown

if TYPE_CHECKING:
    from common.results import Results


def gain(row: dict[str, Any]) -> Ratio:
    """Return how many times as fast steps are that do not begin together."""
    return paired_ratio(row["together_s"], row["overlapping_s"])


def table(results: Results) -> str:
    """Return Markdown: a line per side, size and schedule."""
    header = ["side", "P", "M", "schedule", "together s", "no barrier s", "gain", "simulated gain"]
    rows = [
        [
            row["side"], row["num_ranks"], row["num_microbatches"], row["schedule"],
            f"{median(row['together_s']):.4f}", f"{median(row['overlapping_s']):.4f}",
            gain(row), f"{median(row['simulated_gain']):.3f}",
        ]
        for row in results["rows"]
    ]  # fmt: skip
    return markdown(header, rows)


def figures(results: Results) -> dict[str, Any]:
    """Draw a panel per size: bars by schedule and side, with what the simulator says."""
    rows = results["rows"]
    sizes = sorted({(row["num_ranks"], row["num_microbatches"]) for row in rows})
    sides = sorted({row["side"] for row in rows}, reverse=True)
    names = list(dict.fromkeys(row["schedule"] for row in rows))
    figure, axes = panels(1, len(sizes), width=2.4 * len(sizes) + 1.2, height=3.2)
    for place, size in zip(axes[0], sizes, strict=True):
        for number, side in enumerate(sides):
            for at, name in enumerate(names):
                for row in rows:
                    if (row["num_ranks"], row["num_microbatches"]) == size and (
                        row["side"], row["schedule"]
                    ) == (side, name):  # fmt: skip
                        _bar(place, row, at + 0.36 * (number - (len(sides) - 1) / 2), side)
        place.axhline(1.0, color="gray", linewidth=0.8)
        place.set_xticks(range(len(names)), names)
        place.set_ylim(0.9, 1.2)
        place.set_title("P = {}, M = {}".format(*size), fontsize=9)
    axes[0][0].set_ylabel("times as fast without a barrier")
    _legend(figure, sides)
    return {"overlap": figure}


def _bar(axes: Any, row: dict[str, Any], at: float, side: str) -> None:
    found = gain(row)
    axes.bar(at, found.median - 0.9, width=0.32, bottom=0.9, color=COLORS[side])
    axes.vlines(at, found.low, found.high, color="black", linewidth=1)
    simulated = median(row["simulated_gain"])
    axes.hlines(simulated, at - 0.17, at + 0.17, color="tab:red", linewidth=1.5)


def _legend(figure: Any, sides: list[str]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(color=COLORS[side]) for side in sides]
    handles.append(Line2D([], [], color="tab:red", linewidth=1.5))
    handles.append(Line2D([], [], color="black", linewidth=1))
    labels = [*sides, "simulated", "95 % interval"]
    figure.legend(handles, labels, loc="outside right center", fontsize=8)
