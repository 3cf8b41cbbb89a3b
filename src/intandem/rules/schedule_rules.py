"""Rules every compute schedule must obey. Pure: no torch, no process group.

S001  an action is on a rank that does not own its stage
S002  an action is missing, or appears twice
S003  ranks wait for one another and nothing can run (deadlock)
S004  the placement, the rows and the counts do not fit together
S005  an action's stage or micro-batch is out of range

Each takes any garbage. Time is linear in the number of actions, whatever the counts say.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from intandem.errors import Diagnostic
from intandem.ir import Action, ActionKind, Schedule, predecessors
from intandem.ir.codes import KIND_INDEX, ActionCodes

if TYPE_CHECKING:
    from collections.abc import Iterator

F, B, I, W = ActionKind  # noqa: E741  (the field's letters)
ONE_OF_EACH = "expected 1xF and either 1xB or 1xI with 1xW"
_WHOLE = {
    1 << KIND_INDEX[F] | 1 << KIND_INDEX[B],
    1 << KIND_INDEX[F] | 1 << KIND_INDEX[I] | 1 << KIND_INDEX[W],
}


def check_schedule(schedule: Schedule) -> tuple[Diagnostic, ...]:
    """Return every broken rule, in rank order.

    Deadlock is only looked for once the rest is clean.
    """
    if _is_complete(schedule):
        return tuple(_deadlocked(schedule))
    found = [*_ill_fitting(schedule), *_misplaced(schedule), *_missing_or_repeated(schedule)]
    return tuple(sorted(found, key=lambda d: d.rank))


def _is_complete(schedule: Schedule) -> bool:
    """True if S001, S002, S004 and S005 hold; the rules below say what is wrong if not."""
    if any(True for _ in _ill_fitting(schedule)):
        return False
    rank_of, num_microbatches = schedule.placement.rank_of, schedule.num_microbatches
    if sum(map(len, schedule.actions)) < 2 * len(rank_of) * num_microbatches:
        return False
    index, num_stages = KIND_INDEX, len(rank_of)
    seen = bytearray(num_stages * num_microbatches)
    for rank, row in enumerate(schedule.actions):
        for action in row:
            stage, mb = action.stage, action.microbatch
            if not (0 <= stage < num_stages and 0 <= mb < num_microbatches):
                return False
            bit = 1 << index[action.kind]
            cell = stage * num_microbatches + mb
            if rank_of[stage] != rank or seen[cell] & bit:
                return False
            seen[cell] |= bit
    return _WHOLE.issuperset(seen)


def _ill_fitting(schedule: Schedule) -> Iterator[Diagnostic]:
    num_ranks, rank_of = len(schedule.actions), schedule.placement.rank_of
    if schedule.num_microbatches < 1:
        count = schedule.num_microbatches
        yield Diagnostic("S004", 0, None, f"{count} micro-batches per step; expected at least 1")
    if not rank_of:
        yield Diagnostic("S004", 0, None, "the placement has no stages; expected at least 1")
    for stage, rank in enumerate(rank_of):
        if not 0 <= rank < num_ranks:
            message = f"the placement puts stage {stage} here, but there is no such row"
            yield Diagnostic("S004", rank, None, message)
    for rank in sorted(set(range(num_ranks)) - set(rank_of)):
        yield Diagnostic("S004", rank, None, "has a row but owns no stage")


def _misplaced(schedule: Schedule) -> Iterator[Diagnostic]:
    rank_of, num_microbatches = schedule.placement.rank_of, schedule.num_microbatches
    for rank, row in enumerate(schedule.actions):
        for slot, action in enumerate(row):
            if not 0 <= action.stage < len(rank_of):
                message = f"{action} has no stage: stages end at {len(rank_of) - 1}"
                yield Diagnostic("S005", rank, slot, message)
            elif rank_of[action.stage] != rank:
                message = f"{action} belongs on rank {rank_of[action.stage]}"
                yield Diagnostic("S001", rank, slot, message)
            if not 0 <= action.microbatch < num_microbatches:
                message = (
                    f"{action} has no micro-batch: micro-batches end at {num_microbatches - 1}"
                )
                yield Diagnostic("S005", rank, slot, message)


def _missing_or_repeated(schedule: Schedule) -> Iterator[Diagnostic]:
    seen: dict[int, dict[int, Counter[ActionKind]]] = {}
    for row in schedule.actions:
        for a in row:
            seen.setdefault(a.stage, {}).setdefault(a.microbatch, Counter())[a.kind] += 1
    for stage, rank in enumerate(schedule.placement.rank_of):
        found = seen.get(stage, {})
        unseen_from = 0
        for mb in sorted(m for m in found if 0 <= m < schedule.num_microbatches):
            yield from _unseen(rank, stage, unseen_from, mb - 1)
            unseen_from = mb + 1
            if not _is_whole(found[mb]):
                got = ", ".join(f"{found[mb][k]}x{k}" for k in ActionKind if found[mb][k])
                message = f"stage {stage} micro-batch {mb} has {got}; {ONE_OF_EACH}"
                yield Diagnostic("S002", rank, None, message)
        yield from _unseen(rank, stage, unseen_from, schedule.num_microbatches - 1)


def _unseen(rank: int, stage: int, first: int, last: int) -> Iterator[Diagnostic]:
    """One finding for a run of micro-batches that a stage never sees, however long."""
    if first == last:
        message = f"stage {stage} micro-batch {first} has nothing; {ONE_OF_EACH}"
        yield Diagnostic("S002", rank, None, message)
    elif first < last:
        message = f"stage {stage} micro-batches {first} to {last} have nothing; {ONE_OF_EACH}"
        yield Diagnostic("S002", rank, None, message)


def _is_whole(count: Counter[ActionKind]) -> bool:
    return count[F] == 1 and (count[B], count[I], count[W]) in {(1, 0, 0), (0, 1, 1)}


def _deadlocked(schedule: Schedule) -> Iterator[Diagnostic]:
    codes = ActionCodes(schedule.num_stages, schedule.num_microbatches)
    done, next_slot = _run(codes, [codes.of_actions(row) for row in schedule.actions])
    for rank, row in enumerate(schedule.actions):
        if (slot := next_slot[rank]) < len(row):
            waits = " and ".join(_missing(row[slot], done, codes))
            yield Diagnostic("S003", rank, slot, f"{row[slot]} waits forever for {waits}")


def _run(codes: ActionCodes, rows: list[list[int]]) -> tuple[bytearray, list[int]]:
    """Run each row as far as it goes: what is done, and the slot each rank stands at.

    A rank that waits is woken by the action it waits for, so every action is looked at once.
    """
    needs, num_microbatches = codes.needs(), codes.num_microbatches
    done = bytearray(codes.num_codes)
    next_slot = [0] * len(rows)
    waiting: dict[int, list[int]] = {}
    ready = list(range(len(rows)))
    while ready:
        rank = ready.pop()
        row, slot = rows[rank], next_slot[rank]
        while slot < len(row):
            code = row[slot]
            lacking = None
            for group in needs[code // num_microbatches]:
                if not any(done[code + distance] for distance in group):
                    lacking = group
                    break
            if lacking is not None:
                for distance in lacking:
                    waiting.setdefault(code + distance, []).append(rank)
                break
            done[code] = 1
            if code in waiting:
                ready += waiting.pop(code)
            slot += 1
        next_slot[rank] = slot
    return done, next_slot


def _missing(action: Action, done: bytearray, codes: ActionCodes) -> list[str]:
    needs = predecessors(action, num_stages=codes.num_stages)
    return [
        " or ".join(map(str, group))
        for group in needs
        if not any(done[code] for code in codes.of_actions(group))
    ]
