"""Tables and a plot of what the runtime takes."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from common.plots import COLORS, panels
from common.tables import markdown

if TYPE_CHECKING:
    from common.results import Results

KINDS = ("local", "shared", "gloo")
PIPELINES = (*KINDS, "torch")
BOUNDS_US = {"local": 30, "shared": 80, "gloo": 80}
"""Microseconds per action that are to be reached."""


def over_plain(case: dict[str, Any], kind: str) -> float:
    """Return the median, over rounds, of microseconds per action above the plain loop."""
    found = case["us_per_action"]
    return median(a - b for a, b in zip(found[kind], found["plain"], strict=True))


def table(results: Results) -> str:
    """Return Markdown."""
    cases = [
        [
            case["schedule"], case["ranks"], case["microbatches"],
            f"{median(case['us_per_action']['plain']):.0f}",
            *(_told(case, kind) for kind in PIPELINES),
        ]
        for case in results["cases"]
    ]  # fmt: skip
    hops = [[_size(hop["bytes"]), *(f"{hop[k]:.0f}" for k in KINDS)] for hop in results["hops_us"]]
    noting = [[w, f"{us:.2f}", f"{us / 1000:.2%}"] for w, us in results["noting_us"].items()]
    others = [["build and lower P = 64, M = 512, V = 2", f"{median(results['building_s']):.2f}"]]
    others += [
        [f"from nothing to the end of the first step, {side}", f"{median(found):.1f}"]
        for side, found in results["start_s"].items()
    ]
    return "\n\n".join(
        [
            "Microseconds of processor time per action: of the plain loop, and what is above it",
            markdown(["schedule", "P", "M", "plain", *PIPELINES], cases),
            "Microseconds of a message between two idle ranks",
            markdown(["size", *KINDS], hops),
            "Microseconds to note when something was, always, and its share of an action of 1 ms",
            markdown(["what", "us", "share"], noting),
            markdown(["what", "seconds"], others),
        ]
    )


def _told(case: dict[str, Any], kind: str) -> str:
    return f"{over_plain(case, kind):.0f}" if kind in case["us_per_action"] else ""


def _size(num_bytes: float) -> str:
    kib = round(num_bytes) >> 10
    return f"{kib} KiB" if kib < 1024 else f"{kib >> 10} MiB"


def figures(results: Results) -> dict[str, Any]:
    """Draw microseconds per action against M and P, and per message against its size."""
    figure, axes = panels(1, 3, width=11, height=3.4)
    cases = [case for case in results["cases"] if case["schedule"] == "1f1b"]
    few = min(case["ranks"] for case in cases)
    most = max(case["microbatches"] for case in cases if case["ranks"] == few)
    shared = max({case["microbatches"] for case in cases if case["ranks"] != few} or {most})
    _growth(axes[0][0], [c for c in cases if c["ranks"] == few], "microbatches")
    axes[0][0].set(xlabel="micro-batches M", title=f"P = {few}")
    _growth(axes[0][1], [c for c in cases if c["microbatches"] == shared], "ranks")
    axes[0][1].set(xlabel="ranks P", title=f"M = {shared}")
    _hops(axes[0][2], results["hops_us"])
    figure.suptitle("What the runtime takes (lower is better; dashed: to be reached)", fontsize=10)
    return {"overhead": figure}


def _growth(axes: Any, cases: list[dict[str, Any]], key: str) -> None:
    chosen = sorted(cases, key=lambda case: case[key])
    places = [case[key] for case in chosen]
    for kind in PIPELINES:
        heights = [over_plain(case, kind) for case in chosen]
        axes.plot(places, heights, "o-", color=COLORS[kind], label=f"1f1b, {kind}")
        if kind in BOUNDS_US:
            axes.axhline(BOUNDS_US[kind], color=COLORS[kind], linewidth=0.8, linestyle="--")
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [str(place) for place in places])
    tallest = max(over_plain(case, kind) for case in chosen for kind in PIPELINES)
    axes.set_ylim(0, 1.35 * tallest)  # room for the legend above
    axes.set_ylabel("processor µs per action above plain")
    axes.legend(fontsize=8, ncols=2, loc="upper left")


def _hops(axes: Any, rows: list[dict[str, float]]) -> None:
    for kind in KINDS:
        axes.plot(
            [row["bytes"] for row in rows], [row[kind] for row in rows], "o-",
            color=COLORS[kind], label=kind,
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    shown = rows[::2]
    axes.set_xticks([row["bytes"] for row in shown], [_size(row["bytes"]) for row in shown])
    axes.set(xlabel="bytes of a message", ylabel="µs of a message between idle ranks")
    axes.set_title("one hop")
    axes.legend(fontsize=8)
