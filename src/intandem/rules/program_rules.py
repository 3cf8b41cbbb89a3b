"""Rules every lowered program must obey. Pure: no torch, no process group.

S...  its compute actions obey the rules of schedules
P001  a link between stages is out of range, points the wrong way or is listed twice
P002  a message is not sent once and received once, or is one that no link asks for
P003  a transfer is on the wrong rank, or names the wrong peer
P004  a send comes before the compute that makes it, or a receive after the one that needs it
P005  a rank receives in another order than its peer sends
P006  a receive waits forever (deadlock)
P007  a recomputation is not between the forward it repeats and the backward that needs it
P008  gradients are reduced twice, or before the last backward
P009  something stands between two computes that overlap

[Note: rendezvous] A transfer takes place once both ends have posted it, one after another on
each directed pair of ranks. A send does not hold its rank, and the receiver posts a receive at
the latest when it reaches it. So under P005 a receive is over if and only if the matching send
has been reached; how far ahead receives are posted changes when, never whether. Two computes that
overlap begin and end together; under P009 they are one place in their rank's order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intandem.errors import Diagnostic
from intandem.ir import ActionKind, Compute, Program, Recompute, ReduceGrads
from intandem.rules.message_rules import check_links, check_messages
from intandem.rules.schedule_rules import check_schedule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from intandem.ir import Instruction, Schedule


def check_program(program: Program, clean: Schedule | None = None) -> tuple[Diagnostic, ...]:
    """Return every broken rule, in rank order.

    Messages are looked at once the compute actions and the links are clean, their order once
    each is there, and deadlock last.

    Args:
        program: any.
        clean: a schedule that obeys the rules; a program of the same computes is not checked for
            those again.
    """
    found = [*_compute_rules(program, clean), *check_links(program.placement, program.links)]
    if not found:
        found += check_messages(program)
    for rank, row in enumerate(program.instructions):
        found += _recomputations(rank, row)
        found += _reductions(rank, row)
        found += _parted(rank, row)
    return tuple(sorted(found, key=lambda d: d.rank))


def _compute_rules(program: Program, clean: Schedule | None) -> Iterator[Diagnostic]:
    order = program.compute_order()
    if order == clean:
        return
    for d in check_schedule(order):
        slot = None if d.slot is None else _slot_of(program.instructions[d.rank], d.slot)
        yield Diagnostic(d.code, d.rank, slot, d.message)


def _slot_of(row: tuple[Instruction, ...], nth_compute: int) -> int:
    """Slot of the compute that is ``nth_compute`` among the computes of ``row``."""
    return [slot for slot, i in enumerate(row) if isinstance(i, Compute)][nth_compute]


def _recomputations(rank: int, row: tuple[Instruction, ...]) -> Iterator[Diagnostic]:
    if Recompute not in set(map(type, row)):
        return
    state: dict[tuple[int, int], str] = {}
    for slot, instruction in enumerate(row):
        if isinstance(instruction, Compute):
            a = instruction.action
            state[a.stage, a.microbatch] = "before" if a.kind is ActionKind.F else "after"
        elif isinstance(instruction, Recompute):
            key = (instruction.action.stage, instruction.action.microbatch)
            if instruction.action.kind is not ActionKind.F:
                yield Diagnostic("P007", rank, slot, f"{instruction} is no forward")
            elif (now := state.get(key, "unseen")) != "before":
                yield Diagnostic("P007", rank, slot, f"{instruction} {_OUT_OF_PLACE[now]}")
            else:
                state[key] = "recomputed"


_OUT_OF_PLACE = {
    "unseen": "comes before its forward on this rank; expected it between forward and backward",
    "after": "comes after its backward; expected it between forward and backward",
    "recomputed": "is done twice; expected it once",
}


def _reductions(rank: int, row: tuple[Instruction, ...]) -> Iterator[Diagnostic]:
    if ReduceGrads not in set(map(type, row)):
        return
    slots = [slot for slot, i in enumerate(row) if isinstance(i, ReduceGrads)]
    for slot in slots[1:]:
        yield Diagnostic("P008", rank, slot, f"reduces again; slot {slots[0]} did")
    for slot in slots[:1]:
        late = [i for i in row[slot:] if isinstance(i, Compute) and i.action.kind != ActionKind.F]
        if late:
            yield Diagnostic("P008", rank, slot, f"reduces before {late[0]}; expected it after")


def _parted(rank: int, row: tuple[Instruction, ...]) -> Iterator[Diagnostic]:
    first: Compute | None = None
    between: list[int] = []
    for slot, instruction in enumerate(row):
        if isinstance(instruction, Compute):
            for parting in between:
                what = f"{row[parting]} stands between {first} {instruction}"
                yield Diagnostic("P009", rank, parting, f"{what}; expected it before or after both")
            first = instruction if instruction.overlaps else None
            between.clear()
        elif first is not None:
            between.append(slot)
