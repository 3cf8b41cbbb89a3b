"""Rules every compute schedule must obey. Pure: no torch, no process group.

S001  an action is on a rank that does not own its stage
S002  an action is missing, or appears twice
S003  ranks wait for one another and nothing can run (deadlock)
S004  the placement, the rows and the counts do not fit together
S005  an action's stage or micro-batch is out of range
S006  an action is marked to overlap with the next one, and cannot

A schedule without any backward is one for evaluation; S002 then asks for forwards only.

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

    from intandem.ir import Placement

F, B, I, W = ActionKind  # noqa: E741  (the field's letters)
ONE_OF_EACH = "expected 1xF and either 1xB or 1xI with 1xW"
ONE_FORWARD = "expected 1xF"
_WHOLE = {
    1 << KIND_INDEX[F] | 1 << KIND_INDEX[B],
    1 << KIND_INDEX[F] | 1 << KIND_INDEX[I] | 1 << KIND_INDEX[W],
}


def check_schedule(schedule: Schedule) -> tuple[Diagnostic, ...]:
    """Return every broken rule, in rank order.

    Deadlock is only looked for once the rest is clean.
    """
    unpaired = list(_unpaired(schedule))
    if _is_complete(schedule) and not unpaired:
        return tuple(_deadlocked(schedule))
    found = [*_ill_fitting(schedule), *unpaired]
    if len(set(map(len, schedule.placement.rows))) == 1:
        found += [*_misplaced(schedule), *_missing_or_repeated(schedule)]
    return tuple(sorted(found, key=lambda d: d.rank))


def obeys_all_but_order(schedule: Schedule) -> bool:
    """Whether all rules but S003 hold: for those who will see themselves whether ranks wait."""
    return _is_complete(schedule) and not any(True for _ in _unpaired(schedule))


def _is_complete(schedule: Schedule) -> bool:
    """True if S001, S002, S004 and S005 hold; the rules below say what is wrong if not."""
    if any(True for _ in _ill_fitting(schedule)):
        return False
    placement, num_microbatches = schedule.placement, schedule.num_microbatches
    index, num_stages = KIND_INDEX, placement.num_stages
    whole = {1 << index[F]} if schedule.is_forward_only else _WHOLE
    num_least = (1 if schedule.is_forward_only else 2) * num_stages * num_microbatches
    if sum(map(len, schedule.actions)) < num_least:
        return False
    rank_of = [
        placement.rows[placement.replica_of(m, num_microbatches)] for m in range(num_microbatches)
    ]
    seen = bytearray(num_stages * num_microbatches)
    for rank, row in enumerate(schedule.actions):
        for action in row:
            stage, mb = action.stage, action.microbatch
            if not (0 <= stage < num_stages and 0 <= mb < num_microbatches):
                return False
            bit = 1 << index[action.kind]
            cell = stage * num_microbatches + mb
            if rank_of[mb][stage] != rank or seen[cell] & bit:
                return False
            seen[cell] |= bit
    return whole.issuperset(seen)


def _ill_fitting(schedule: Schedule) -> Iterator[Diagnostic]:
    num_ranks, placement = len(schedule.actions), schedule.placement
    if schedule.num_microbatches < 1:
        count = schedule.num_microbatches
        yield Diagnostic("S004", 0, None, f"{count} micro-batches per step; expected at least 1")
    if not placement.num_stages:
        yield Diagnostic("S004", 0, None, "the placement has no stages; expected at least 1")
    for replica in placement.replicas:
        if len(replica) != placement.num_stages:
            counts = f"{len(replica)} stages and replica 0 {placement.num_stages}"
            yield Diagnostic("S004", 0, None, f"a replica has {counts}; expected as many")
            return
    for stage in range(placement.num_stages):
        holders = placement.holders_of(stage)
        for rank, times in Counter(holders).items():
            if not 0 <= rank < num_ranks:
                message = f"the placement puts stage {stage} here, but there is no such row"
                yield Diagnostic("S004", rank, None, message)
            if times > 1:
                message = f"holds stage {stage} for {times} replicas; expected one"
                yield Diagnostic("S004", rank, None, message)
    for rank in sorted(set(range(num_ranks)).difference(*placement.rows)):
        yield Diagnostic("S004", rank, None, "has a row but owns no stage")


def _misplaced(schedule: Schedule) -> Iterator[Diagnostic]:
    placement, num_microbatches = schedule.placement, schedule.num_microbatches
    for rank, row in enumerate(schedule.actions):
        for slot, action in enumerate(row):
            has_stage = 0 <= action.stage < placement.num_stages
            has_microbatch = 0 <= action.microbatch < num_microbatches
            if not has_stage:
                message = f"{action} has no stage: stages end at {placement.num_stages - 1}"
                yield Diagnostic("S005", rank, slot, message)
            if not has_microbatch:
                message = (
                    f"{action} has no micro-batch: micro-batches end at {num_microbatches - 1}"
                )
                yield Diagnostic("S005", rank, slot, message)
            if has_stage and (owners := _owners(placement, action, num_microbatches)) != {rank}:
                if not has_microbatch and rank in owners:
                    continue
                message = f"{action} belongs on rank {' or '.join(map(str, sorted(owners)))}"
                yield Diagnostic("S001", rank, slot, message)


def _owners(placement: Placement, action: Action, num_microbatches: int) -> set[int]:
    """Return the ranks where ``action`` may be: one, unless its micro-batch does not exist."""
    if 0 <= action.microbatch < num_microbatches:
        return {placement.rank_for(action.stage, action.microbatch, num_microbatches)}
    return set(placement.holders_of(action.stage))


def _unpaired(schedule: Schedule) -> Iterator[Diagnostic]:
    """S006: what overlaps is a forward and, directly after it, a backward of something else."""
    for rank, slot in sorted(schedule.overlaps):
        row = schedule.actions[rank] if 0 <= rank < len(schedule.actions) else ()
        first, second = row[slot : slot + 1], row[slot + 1 : slot + 2]
        if slot < 0:
            yield Diagnostic("S006", rank, slot, "overlaps with nothing: there is no such slot")
        elif not first or not second:
            yield Diagnostic("S006", rank, slot, "overlaps with nothing: the row ends here")
        elif first[0].kind is not F or second[0].kind not in {B, I}:
            text = f"{first[0]} overlaps with {second[0]}; expected an F with a B or I"
            yield Diagnostic("S006", rank, slot, text)
        elif (first[0].stage, first[0].microbatch) == (second[0].stage, second[0].microbatch):
            text = f"{first[0]} overlaps with {second[0]}, which needs it"
            yield Diagnostic("S006", rank, slot, text)


def _missing_or_repeated(schedule: Schedule) -> Iterator[Diagnostic]:
    seen: dict[int, dict[int, Counter[ActionKind]]] = {}
    for row in schedule.actions:
        for a in row:
            seen.setdefault(a.stage, {}).setdefault(a.microbatch, Counter())[a.kind] += 1
    backward = {(0, 0, 0)} if schedule.is_forward_only else {(1, 0, 0), (0, 1, 1)}
    expected = ONE_FORWARD if schedule.is_forward_only else ONE_OF_EACH
    placement, num_microbatches = schedule.placement, schedule.num_microbatches
    for stage in range(placement.num_stages):
        found = seen.get(stage, {})
        unseen_from = 0
        for mb in sorted(m for m in found if 0 <= m < num_microbatches):
            yield from _unseen(schedule, stage, (unseen_from, mb - 1), expected)
            unseen_from = mb + 1
            count = found[mb]
            if count[F] != 1 or (count[B], count[I], count[W]) not in backward:
                rank = placement.rank_for(stage, mb, num_microbatches)
                got = ", ".join(f"{count[k]}x{k}" for k in ActionKind if count[k])
                message = f"stage {stage} micro-batch {mb} has {got}; {expected}"
                yield Diagnostic("S002", rank, None, message)
        yield from _unseen(schedule, stage, (unseen_from, num_microbatches - 1), expected)


def _unseen(
    schedule: Schedule, stage: int, span: tuple[int, int], expected: str
) -> Iterator[Diagnostic]:
    """One finding per replica for a run of micro-batches that a stage never sees, however long."""
    placement, count = schedule.placement, schedule.num_microbatches
    first, end = span
    while first <= end:
        replica = placement.replica_of(first, count)
        last = min(end, -(-(replica + 1) * count // placement.num_replicas) - 1)
        what = (
            f"micro-batch {first} has" if first == last else f"micro-batches {first} to {last} have"
        )
        message = f"stage {stage} {what} nothing; {expected}"
        yield Diagnostic("S002", placement.rows[replica][stage], None, message)
        first = last + 1


def _deadlocked(schedule: Schedule) -> Iterator[Diagnostic]:
    codes = ActionCodes(schedule.num_stages, schedule.num_microbatches)
    rows = [codes.of_actions(row) for row in schedule.actions]
    done, next_slot = _run(codes, rows, schedule.overlaps)
    for rank, row in enumerate(schedule.actions):
        if (slot := next_slot[rank]) < len(row):
            together = (
                row[slot : slot + 2] if (rank, slot) in schedule.overlaps else row[slot : slot + 1]
            )
            waits = " and ".join(w for action in together for w in _missing(action, done, codes))
            what = "& ".join(map(str, together))
            yield Diagnostic("S003", rank, slot, f"{what} waits forever for {waits}")


def _run(
    codes: ActionCodes, rows: list[list[int]], overlaps: frozenset[tuple[int, int]]
) -> tuple[bytearray, list[int]]:
    """Run each row as far as it goes: what is done, and the slot each rank stands at.

    A rank that waits is woken by the action it waits for, so every action is looked at once. Of two
    that overlap, neither starts before both can.
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
            lacking = _lacking(code, needs[code // num_microbatches], done)
            if not lacking and overlaps and (rank, slot) in overlaps:
                second = row[slot + 1]
                lacking = _lacking(second, needs[second // num_microbatches], done)
            if lacking:
                for needed in lacking:
                    waiting.setdefault(needed, []).append(rank)
                break
            done[code] = 1
            if code in waiting:
                ready += waiting.pop(code)
            slot += 1
        next_slot[rank] = slot
    return done, next_slot


def _lacking(code: int, groups: tuple[tuple[int, ...], ...], done: bytearray) -> list[int]:
    """Return the alternatives of the first need of ``code`` that is not met; empty if all are."""
    for group in groups:
        for distance in group:
            if done[code + distance]:
                break
        else:
            return [code + distance for distance in group]
    return []


def _missing(action: Action, done: bytearray, codes: ActionCodes) -> list[str]:
    needs = predecessors(action, num_stages=codes.num_stages)
    return [
        " or ".join(map(str, group))
        for group in needs
        if not any(done[code] for code in codes.of_actions(group))
    ]
