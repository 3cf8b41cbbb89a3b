"""Table and plot of measured against simulated makespans."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from common.plots import COLORS, panels
from common.tables import markdown

if TYPE_CHECKING:
    from common.results import Results

OFFSETS = {"local": -0.27, "shared": -0.09, "gloo": 0.09, "torch": 0.27}
"""Of a side's points, a little apart from each other's."""

MARKERS = {
    "gpipe": "o", "1f1b": "s", "interleaved": "^", "interleaved-zb": "v", "zb-h1": "D", "zb-v": "P",
}  # fmt: skip


def ratio(row: dict[str, Any]) -> float:
    """Return the median of measured makespans over the simulated one."""
    return median(row["steps_s"]) / row["makespan_s"]


def reached(row: dict[str, Any]) -> float | None:
    """Return what the ratio is to be at most, where that is said."""
    if row["side"] == "torch" or row["num_ranks"] > 8:
        return None
    if row["action_ms"] >= 10:
        return 1.02
    return 1.05 if row["num_ranks"] == 4 else None


def table(results: Results) -> str:
    """Return Markdown: a line per run."""
    rows = []
    for row in results["rows"]:
        bound, found = reached(row), ratio(row)
        rows.append(
            [
                row["side"], row["num_ranks"], row["action_ms"], row["stages"], row["schedule"],
                f"{row['makespan_s']:.4f}", f"{median(row['steps_s']):.4f}", f"{found:.3f}",
                None if bound is None else f"{bound} {'yes' if found <= bound else 'no'}",
                f"{min(row['steps_s']) / row['makespan_s']:.3f}", f"{row['overslept']:.2%}",
                f"{row['transfer_s'] * 1e3:.2f}", f"{row['load']:.1f}",
            ]
        )  # fmt: skip
    header = [
        "side", "P", "action ms", "stages", "schedule", "simulated s", "measured s", "ratio",
        "at most", "fastest step", "overslept", "transfer ms", "load",
    ]  # fmt: skip
    return markdown(header, rows)


def figures(results: Results) -> dict[str, Any]:
    """Draw the ratio against the length of actions: a row per P, a column for kinds of stages."""
    rows = results["rows"]
    ranks = sorted({row["num_ranks"] for row in rows})
    kinds = sorted({row["stages"] for row in rows})
    figure, axes = panels(len(ranks), len(kinds), width=4.8 * len(kinds) + 1.6,
                          height=2.6 * len(ranks) + 0.6)  # fmt: skip
    lengths = sorted({row["action_ms"] for row in rows})
    for line, num_ranks in zip(axes, ranks, strict=True):
        for place, kind in zip(line, kinds, strict=True):
            chosen = [r for r in rows if r["num_ranks"] == num_ranks and r["stages"] == kind]
            place.set_visible(bool(chosen))
            if chosen:
                _panel(place, chosen, lengths)
            place.set_title(f"P = {num_ranks}, {kind} stages", fontsize=9)
    _legend(figure, rows)
    figure.suptitle("Step on emulated ranks over its simulated makespan (1 is best)", fontsize=10)
    return {"emulated": figure}


def _panel(axes: Any, rows: list[dict[str, Any]], lengths: list[int]) -> None:
    """Points, a little apart so that none hides another."""
    for row in rows:
        shift = OFFSETS[row["side"]] + 0.015 * list(MARKERS).index(row["schedule"]) - 0.05
        axes.plot(
            lengths.index(row["action_ms"]) + shift, ratio(row), MARKERS[row["schedule"]],
            color=COLORS[row["side"]], markersize=4,
        )  # fmt: skip
    axes.axhline(1.02, color="gray", linewidth=0.8, linestyle="--")
    axes.set_xticks(range(len(lengths)), [str(length) for length in lengths])
    axes.set_xlim(-0.5, len(lengths) - 0.5)
    bottom, top = min([0.99, *map(ratio, rows)]), max([1.02, *map(ratio, rows)])
    axes.set_ylim(bottom, top + 0.05 * (top - bottom))  # room for the highest marker
    axes.set_xlabel("F, I and W of a P-th of the model take, ms")
    axes.set_ylabel("measured / simulated")


def _legend(figure: Any, rows: list[dict[str, Any]]) -> None:
    from matplotlib.lines import Line2D

    sides = [side for side in OFFSETS if side in {r["side"] for r in rows}]
    names = [name for name in MARKERS if name in {r["schedule"] for r in rows}]
    handles = [Line2D([], [], color=COLORS[side], marker="o", linestyle="") for side in sides]
    handles += [Line2D([], [], color="black", marker=MARKERS[n], linestyle="") for n in names]
    handles.append(Line2D([], [], color="gray", linestyle="--", linewidth=0.8))
    figure.legend(handles, [*sides, *names, "1.02"], loc="outside right center", fontsize=8)
