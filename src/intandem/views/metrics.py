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

STEP, LOSS, HELDOUT, RATE = "step", "loss", "validation_loss", "tokens_per_s"
"""What is read of each line; a line may have any of the last three, and others besides."""


def with_metrics(report: Report, lines: str, *, what: str) -> Report:
    """Return ``report`` with the loss and throughput curves that ``lines`` have.

    Numbers that are not finite are left out, and so is a last line that was not finished.

    Args:
        report: whose own curves go where there are others.
        lines: such as ``{"step": 3, "loss": 2.1, "tokens_per_s": 8e4}``.
        what: their name, which errors begin with.

    Raises:
        ValueError: if a line is no object with a step.
    """
    curves: dict[str, list[tuple[int, float]]] = {LOSS: [], HELDOUT: [], RATE: []}
    for row in _rows(lines, what):
        for key, points in curves.items():
            value = row.get(key)
            if isinstance(value, int | float) and math.isfinite(value):
                points.append((_step(row), float(value)))
    if curves[LOSS]:
        before = report.loss or LossCurve(())
        loss = replace(before, training=tuple(curves[LOSS]), heldout=tuple(curves[HELDOUT]))
        report = replace(report, loss=loss)
    if curves[RATE]:
        report = replace(report, throughput=Throughput(tuple(curves[RATE]), "tokens"))
    return report


def _rows(lines: str, what: str) -> Iterator[Mapping[str, object]]:
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
        yield row


def _step(row: Mapping[str, object]) -> int:
    step = row[STEP]
    return step if isinstance(step, int) else 0
