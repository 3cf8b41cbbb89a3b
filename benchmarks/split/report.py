"""Table and plot of what splitting a backward costs."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from common.plots import COLORS, panels
from common.ratios import Ratio, paired_ratio
from common.tables import markdown

if TYPE_CHECKING:
    from common.results import Results

BOUNDS = ((256, 1.03), (0, 1.3))
"""What (I + W) / B is to be at most, from widths on."""


def over_plain(row: dict[str, Any], way: str) -> Ratio:
    """Return both parts of a way over the plain backward, round by round."""
    parts = zip(row[way]["first_s"], row[way]["second_s"], strict=True)
    return paired_ratio([a + b for a, b in parts], row["plain"]["first_s"])


def _bytes_over_plain(row: dict[str, Any], way: str) -> str:
    return f"{row[way]['peak_bytes'] / row['plain']['peak_bytes']:.2f}"


def table(results: Results) -> str:
    """Return Markdown."""
    rows = [
        [
            row["width"], row["tokens"], _ms(row["plain"]["first_s"]),
            _ms(row["intandem"]["first_s"]), _ms(row["intandem"]["second_s"]),
            over_plain(row, "intandem"), f"{over_plain(row, 'torch').median:.3f}",
            next(bound for width, bound in BOUNDS if row["width"] >= width),
            _bytes_over_plain(row, "intandem"), _bytes_over_plain(row, "torch"),
            len(row["plain"]["first_s"]),
        ]
        for row in results["rows"]
    ]  # fmt: skip
    header = [
        "width", "tokens", "plain B ms", "I ms", "W ms", "(I + W) / B", "torch's", "at most",
        "peak bytes / B's", "torch's", "rounds",
    ]  # fmt: skip
    return markdown(header, rows)


def _ms(found_s: list[float]) -> str:
    return f"{median(found_s) * 1e3:.2f}"


def figures(results: Results) -> dict[str, Any]:
    """Draw the ratios of time and of memory."""
    figure, axes = panels(1, 2, width=10, height=3.5)
    rows = results["rows"]
    _bars(axes[0][0], rows, lambda row, way: over_plain(row, way).median)
    axes[0][0].set(ylabel="(I + W) / plain backward", title="time")
    _bars(axes[0][1], rows, lambda row, way: float(_bytes_over_plain(row, way)))
    axes[0][1].set(ylabel="peak bytes / plain backward", title="memory")
    figure.suptitle("What splitting a backward costs (lower is better)", fontsize=10)
    return {"split": figure}


def _bars(axes: Any, rows: list[dict[str, Any]], value: Any) -> None:
    places = range(len(rows))
    for offset, way, color, label in (
        (-0.2, "intandem", COLORS["local"], "intandem"),
        (0.2, "torch", COLORS["torch"], "torch.distributed.pipelining"),
    ):
        heights = [value(row, way) for row in rows]
        bars = axes.bar([p + offset for p in places], heights, 0.38, label=label, color=color)
        axes.bar_label(bars, fmt="%.2f", fontsize=7)
    axes.axhline(1, color="gray", linewidth=0.8)
    axes.set_xticks(list(places), [str(row["width"]) for row in rows])
    axes.set_xlabel("width of the blocks")
    axes.margins(y=0.35)  # room for the legend
    axes.legend(fontsize=8)
