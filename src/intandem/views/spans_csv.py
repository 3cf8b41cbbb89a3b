"""When each action ran, as a table for spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intandem.ir import Timeline
    from intandem.views.report import OptimizerSpan

COLUMNS = ("rank", "action", "stage", "kind", "microbatch", "start_s", "end_s")


def spans_csv(timeline: Timeline, *, optimizer: Sequence[OptimizerSpan] = ()) -> str:
    """Return a line for each action, in rank order and each rank's in the order it ran them.

    Times are seconds since the timeline's start, with all their digits. An optimizer's update has
    the kind O, and neither stage nor micro-batch.

    Args:
        timeline: simulated or measured.
        optimizer: updates, on the timeline's clock.
    """
    start_s, out = timeline.start_s, io.StringIO()
    rows = [
        (s.rank, s.action, s.action.stage, s.action.kind, s.action.microbatch, s.start_s, s.end_s)
        for s in timeline.spans
    ]
    updates = [(u.rank, "O", "", "O", "", u.start_s, u.end_s) for u in optimizer]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for *what, begun_s, end_s in sorted([*rows, *updates], key=lambda row: row[0]):
        writer.writerow([*what, begun_s - start_s, end_s - start_s])
    return out.getvalue()
