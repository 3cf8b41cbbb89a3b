"""Tables and a plot of what one device showed."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from common.plots import COLORS, panels
from common.ratios import Ratio, paired_ratio
from common.tables import markdown
from split.report import over_plain

if TYPE_CHECKING:
    from common.results import Results


def _stage_ratio(row: dict[str, Any]) -> Ratio:
    return paired_ratio(row["step_s"]["pipeline"], row["step_s"]["plain"])


def table(results: Results) -> str:
    """Return Markdown."""
    parts = {
        "A pipeline of one stage over a plain loop": _one_stage(results["one_stage"]),
        "I and W over a plain backward": _split(results["split"]),
        "Bytes of activations: predicted, and of a step": _memory(results["memory"]),
        "Gradients of local ranks against the plain model": _gradients(results["gradients"]),
    }
    tables = "\n\n".join(f"{title}\n\n{found}" for title, found in parts.items())
    return f"Device: {results['device']}\n\n{tables}"


def _one_stage(rows: list[dict[str, Any]]) -> str:
    header = ["width", "seq", "M", "dtype", "plain ms", "pipeline ms", "ratio", "µs per action"]
    return markdown(
        header,
        [
            [
                row["width"], row["seq"], row["microbatches"], row["dtype"],
                *(f"{median(row['step_s'][side]) * 1e3:.2f}" for side in ("plain", "pipeline")),
                _stage_ratio(row), f"{_us_per_action(row):.0f}",
            ]
            for row in rows
        ],
    )  # fmt: skip


def _us_per_action(row: dict[str, Any]) -> float:
    """Return the median of what a pipeline's step takes more, for each F and B."""
    pairs = zip(row["step_s"]["pipeline"], row["step_s"]["plain"], strict=True)
    return 1e6 * median(a - b for a, b in pairs) / (2 * row["microbatches"])


def _split(rows: list[dict[str, Any]]) -> str:
    header = ["width", "dtype", "(I + W) / B", "torch's", "peak bytes / B's"]
    return markdown(
        header,
        [
            [
                row["width"], row["dtype"], over_plain(row, "intandem"),
                f"{over_plain(row, 'torch').median:.3f}",
                f"{row['intandem']['peak_bytes'] / max(row['plain']['peak_bytes'], 1):.2f}",
            ]
            for row in rows
        ],
    )  # fmt: skip


def _memory(rows: list[dict[str, Any]]) -> str:
    header = [
        "ranks", "schedule", "activations held", "predicted MB", "a backward's own MB",
        "measured MB", "measured / predicted",
    ]  # fmt: skip
    return markdown(
        header,
        [
            [
                row["ranks"], row["schedule"], " ".join(map(str, row["peak_activations"])),
                *(
                    f"{row[key] / 1e6:.1f}"
                    for key in ("predicted_bytes", "transient_bytes", "measured_bytes")
                ),
                f"{found:.3f}" if (found := _memory_ratio(row)) else "too little to say",
            ]
            for row in rows
        ],
    )  # fmt: skip


def _memory_ratio(row: dict[str, Any]) -> float | None:
    """Return measured over predicted bytes; None where there are too few to be told apart."""
    predicted = row["predicted_bytes"]
    return row["measured_bytes"] / predicted if predicted > 1e6 else None


def _gradients(rows: list[dict[str, Any]]) -> str:
    header = ["dtype", "ranks", "schedule", "equal", "largest gradient error", "tolerance"]
    return markdown(
        header,
        [
            [
                row["dtype"], row["ranks"], row["schedule"], "yes" if row["equal"] else "NO",
                f"{row['max_gradient_error']:.1e}", f"{row['tolerance']:.0e}",
            ]
            for row in rows
        ],
    )  # fmt: skip


def figures(results: Results) -> dict[str, Any]:
    """Draw the ratios of one stage, of splitting, and of memory.

    Of a pretended GPU memory alone: what it takes says nothing.
    """
    shown = [_draw_memory] if "pretend" in results["device"] else _DRAWN
    figure, axes = panels(1, len(shown), width=1.5 + 3.5 * len(shown), height=3.6)
    for draw, place in zip(shown, axes[0], strict=True):
        draw(place, results)
    figure.suptitle(f"On one device: {results['device']} (1 is best)", fontsize=10)
    return {"gpu": figure}


def _draw_stage(axes: Any, results: Results) -> None:
    rows = results["one_stage"]
    names = [f"width {row['width']}\n{row['dtype']}" for row in rows]
    _bars(axes, names, [_stage_ratio(row).median for row in rows])
    axes.set(title="one stage", ylabel="pipeline / plain loop, seconds")


def _draw_split(axes: Any, results: Results) -> None:
    widths = sorted({row["width"] for row in results["split"]})
    for dtype, mark in (("float32", "o-"), ("bfloat16", "s--")):
        rows = [row for row in results["split"] if row["dtype"] == dtype]
        for way, color in (("intandem", COLORS["local"]), ("torch", COLORS["torch"])):
            heights = [over_plain(row, way).median for row in rows]
            axes.plot(widths, heights, mark, color=color, label=f"{way}, {dtype}")
    axes.axhline(1, color="gray", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(widths, [str(width) for width in widths])
    axes.set(title="split backward", xlabel="width", ylabel="(I + W) / B, seconds")
    axes.legend(fontsize=7)


def _draw_memory(axes: Any, results: Results) -> None:
    rows = results["memory"]
    names = [f"{row['schedule']}\n{row['ranks']} rank{'s'[: row['ranks'] > 1]}" for row in rows]
    _bars(axes, names, [_memory_ratio(row) or 0.0 for row in rows])
    axes.set(title="activation memory", ylabel="measured / predicted bytes")


_DRAWN = (_draw_stage, _draw_split, _draw_memory)


def _bars(axes: Any, names: list[str], heights: list[float]) -> None:
    bars = axes.bar(range(len(names)), heights, color=COLORS["local"])
    axes.bar_label(bars, fmt="%.2f", fontsize=7)
    axes.set_xticks(range(len(names)), names, fontsize=6)
    axes.axhline(1, color="gray", linewidth=0.8)
    axes.margins(y=0.12)
