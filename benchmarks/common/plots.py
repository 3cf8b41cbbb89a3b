"""Plots of one look, written as PNG and SVG. Needs the extra [bench]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

COLORS = {
    "local": "tab:blue",
    "local-barrier": "#9ecae9",
    "shared": "tab:green",
    "shared-barrier": "#a1d99b",
    "gloo": "tab:olive",
    "gloo-barrier": "#dbdb8d",
    "torch": "tab:orange",
    "torch-barrier": "#fdd0a2",
    "deepspeed": "tab:purple",
}
"""By kind of side; others are gray."""


def panels(rows: int, columns: int, *, width: float, height: float) -> tuple[Any, Any]:
    """Return a figure and its axes, always as a grid: ``axes[row][column]``. Sizes in inches."""
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams["svg.hashsalt"] = "intandem"  # the same figure has the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        rows, columns, figsize=(width, height), layout="constrained", squeeze=False
    )
    return figure, axes


def save(figure: Any, folder: Path, name: str) -> None:
    """Write ``name.png`` and ``name.svg`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", dpi=130)
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    print(f"drawn: {folder / name}.png and .svg")
