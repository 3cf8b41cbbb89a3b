"""The compute-order CSV of ``torch.distributed.pipelining``: how a schedule moves between stacks.

One row per rank, one cell per slot, such as ``0F0``; an empty cell is an idle slot, which a
schedule does not have. B is the full backward, I and W are its halves; a forward and a backward
that overlap share a cell, ``(0F3;7B0)OVERLAP_F_B``. The file has no name and no placement: a rank
holds the stages that its row holds, for the micro-batches that it has there.
"""

from __future__ import annotations

import csv
import io
import re
from typing import TYPE_CHECKING

from intandem.errors import ScheduleParseError
from intandem.ir.action import Action
from intandem.ir.placement import Placement
from intandem.ir.schedule import Schedule

if TYPE_CHECKING:
    from collections.abc import Sequence

_PAIR = re.compile(r"\((?P<first>[^;()]*);(?P<second>[^;()]*)\)OVERLAP_F_B")

Rows = tuple[tuple[Action, ...], ...]


def format_compute_csv(schedule: Schedule) -> str:
    """Write the compute order of ``schedule``, without idle cells.

    A mark of an overlap at a slot that there is not, which ``verify`` refuses, is left out.
    """
    out = io.StringIO()
    rows = (_cells(schedule, rank) for rank in range(schedule.num_ranks))
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def _cells(schedule: Schedule, rank: int) -> list[str]:
    cells: list[str] = []
    for slot, action in enumerate(schedule.actions[rank]):
        if slot and (rank, slot - 1) in schedule.overlaps:
            cells[-1] = f"({cells[-1]};{action})OVERLAP_F_B"
        else:
            cells.append(str(action))
    return cells


def parse_compute_csv(text: str, *, name: str) -> Schedule:
    """Read a compute-order CSV. The result is not verified.

    Args:
        text: content of the file.
        name: of the schedule; the file has none.

    Raises:
        ScheduleParseError: if a cell is not an action, a micro-batch is on two ranks for one stage,
            or the stages are not 0, 1, 2, ...; names row and cell.
    """
    cells = csv.reader(io.StringIO(text, newline=""))
    rows: list[tuple[Action, ...]] = []
    overlaps: set[tuple[int, int]] = set()
    for row in cells:
        actions: list[Action] = []
        for column, cell in enumerate(row, start=1):
            found = _parse_cell(cell.strip(), f"row {len(rows) + 1} cell {column}")
            if len(found) > 1:
                overlaps.add((len(rows), len(actions)))
            actions += found
        rows.append(tuple(actions))
    count = 1 + max((a.microbatch for row in rows for a in row), default=-1)
    placement = _placement(tuple(rows), count)
    return Schedule(name, placement, count, tuple(rows), frozenset(overlaps))


def _parse_cell(cell: str, place: str) -> tuple[Action, ...]:
    pair = _PAIR.fullmatch(cell)
    words = (pair["first"], pair["second"]) if pair else (cell,) if cell else ()
    try:
        return tuple(Action.parse(word.strip()) for word in words)
    except ScheduleParseError as error:
        msg = f"{place}: {error}"
        raise ScheduleParseError(msg) from None


def _placement(rows: Rows, num_microbatches: int) -> Placement:
    """Return which ranks hold which stage: the row of a stage's micro-batch says where it is."""
    found: dict[int, dict[int, int]] = {}
    for rank, row in enumerate(rows):
        for action in row:
            owner = found.setdefault(action.stage, {}).setdefault(action.microbatch, rank)
            if owner != rank:
                what = f"stage {action.stage} of micro-batch {action.microbatch}"
                msg = f"row {rank + 1}: found {action}; {what} is in row {owner + 1}"
                raise ScheduleParseError(msg)
    stages = sorted(found)
    if stages != list(range(len(stages))):
        msg = f"found stages {', '.join(map(str, stages))}; expected 0..{stages[-1]} without a gap"
        raise ScheduleParseError(msg)
    holders = [tuple(dict.fromkeys(r for _, r in sorted(found[s].items()))) for s in stages]
    num_replicas = max(map(len, holders), default=1)
    if any(len(ranks) != num_replicas for ranks in holders):
        odd = next(s for s in stages if len(holders[s]) != num_replicas)
        counts = f"{len(holders[odd])} rows, another in {num_replicas}"
        msg = f"stage {odd} is in {counts}; expected as many"
        raise ScheduleParseError(msg)
    placement = Placement(*_transposed(holders, num_replicas))
    for stage in stages:
        for microbatch, held_by in found[stage].items():
            if (due := placement.rank_for(stage, microbatch, num_microbatches)) != held_by:
                what = f"stage {stage} of micro-batch {microbatch}"
                why = "replicas share micro-batches out in order"
                msg = f"{what} is in row {held_by + 1}; expected row {due + 1}, as {why}"
                raise ScheduleParseError(msg)
    return placement


def _transposed(
    holders: Sequence[tuple[int, ...]], num_replicas: int
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    first, *others = (tuple(ranks[replica] for ranks in holders) for replica in range(num_replicas))
    return first, tuple(others)
