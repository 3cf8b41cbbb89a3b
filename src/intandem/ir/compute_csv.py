"""The compute-order CSV of ``torch.distributed.pipelining``: how a schedule moves between stacks.

One row per rank, one cell per slot, such as ``0F0``; an empty cell is an idle slot, which a
schedule does not have. B is the full backward, I and W are its halves. The file has no name and
no placement: a rank owns the stages that its row holds.
"""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from intandem.errors import ScheduleParseError
from intandem.ir.action import Action
from intandem.ir.placement import Placement
from intandem.ir.schedule import Schedule

if TYPE_CHECKING:
    from collections.abc import Sequence

Rows = tuple[tuple[Action, ...], ...]


def format_compute_csv(schedule: Schedule) -> str:
    """Write the compute order of ``schedule``, without idle cells."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(schedule.actions)
    return out.getvalue()


def parse_compute_csv(text: str, *, name: str) -> Schedule:
    """Read a compute-order CSV. The result is not verified.

    Args:
        text: content of the file.
        name: of the schedule; the file has none.

    Raises:
        ScheduleParseError: if a cell is not an action, a stage is on two ranks, or the stages
            are not 0, 1, 2, ...; names row and cell.
    """
    cells = csv.reader(io.StringIO(text, newline=""))
    rows = tuple(_parse_row(number, row) for number, row in enumerate(cells, start=1))
    count = 1 + max((a.microbatch for row in rows for a in row), default=-1)
    return Schedule(name, _placement(rows), count, rows)


def _parse_row(number: int, row: Sequence[str]) -> tuple[Action, ...]:
    actions = []
    for column, cell in enumerate(row, start=1):
        try:
            if text := cell.strip():
                actions.append(Action.parse(text))
        except ScheduleParseError as error:
            msg = f"row {number} cell {column}: {error}"
            raise ScheduleParseError(msg) from None
    return tuple(actions)


def _placement(rows: Rows) -> Placement:
    rank_of: dict[int, int] = {}
    for rank, row in enumerate(rows):
        for action in row:
            if (owner := rank_of.setdefault(action.stage, rank)) != rank:
                msg = f"row {rank + 1}: found {action}; stage {action.stage} is in row {owner + 1}"
                raise ScheduleParseError(msg)
    found = sorted(rank_of)
    if found != list(range(len(found))):
        msg = f"found stages {', '.join(map(str, found))}; expected 0..{found[-1]} without a gap"
        raise ScheduleParseError(msg)
    return Placement(tuple(rank_of[stage] for stage in found))
