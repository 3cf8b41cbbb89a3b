"""Curves of a run from the metrics that it logged: one JSON object per line."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING

from intandem.views.report import LossCurve, Throughput

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from intandem.views.report import Report

STEP, LOSS, HELDOUT, RATE = "step", "loss", "validation_loss", "_per_s"
"""What is read of each line; the last is how the name of a rate ends: ``tokens_per_s``."""


def with_metrics(report: Report, lines: str, *, what: str) -> Report:
    """Return ``report`` with the loss and throughput curves that ``lines`` have.

    Numbers that are not finite are left out, and so is a last line that was not finished. Of
    several rates the first counts.

    Args:
        report: whose own curves go where there are others.
        lines: such as ``{"step": 3, "loss": 2.1, "tokens_per_s": 8e4}``.
        what: their name, which errors begin with.

    Raises:
        ValueError: if a line is no object with a step.
    """
    curves: dict[str, list[tuple[int, float]]] = {LOSS: [], HELDOUT: []}
    for step, row in _rows(lines, what):
        for key, value in row.items():
            if not isinstance(value, int | float) or not math.isfinite(value):
                continue
            if key in curves or key.endswith(RATE):
                curves.setdefault(key, []).append((step, float(value)))
    training, heldout = (tuple(curves.pop(key)) for key in (LOSS, HELDOUT))
    if training:
        before = report.loss or LossCurve(())
        report = replace(report, loss=replace(before, training=training, heldout=heldout))
    for name, points in list(curves.items())[:1]:
        rates = Throughput(tuple(points), name.removesuffix(RATE))
        report = replace(report, throughput=rates)
    return report


def _rows(lines: str, what: str) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Step and content of each line."""
    numbered = [(n, line) for n, line in enumerate(lines.splitlines(), 1) if line.strip()]
    for number, line in numbered:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            if number == numbered[-1][0] and not lines.endswith("\n"):
                return
            msg = f"{what} line {number} is not JSON"
            raise ValueError(msg) from None
        if not isinstance(row, dict) or not isinstance(row.get(STEP), int):
            msg = f"{what} line {number} is no object with a whole number for {STEP!r}"
            raise ValueError(msg)
        yield row[STEP], row
