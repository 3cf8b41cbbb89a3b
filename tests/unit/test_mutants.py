"""Hundreds of small damages to good schedules and programs: each is refused, or does no harm.

Whether one does harm is decided here, by running the order step by step with plain sets, not by
the library's rules.
"""

import random
from collections import Counter, deque
from dataclasses import replace
from itertools import pairwise

import pytest
from order_samples import B, F, I, W, random_valid, split_backwards

from intandem.costs import CostModel
from intandem.ir import Action, Compute, Placement, Recompute, Recv, ReduceGrads, Schedule, Send
from intandem.lowering import lower
from intandem.rules import check
from intandem.schedules import build_schedule, schedule_names
from intandem.simulator import simulate

NUM_MUTANTS = 1000
NUM_MARKED = 400


def good_schedules():
    for name in ("naive", "gpipe", "1f1b"):
        for p, m in ((1, 2), (2, 3), (3, 4), (4, 2)):
            schedule = build_schedule(name, num_ranks=p, num_microbatches=m)
            yield schedule
            yield split_backwards(schedule)
    for seed in range(8):
        yield random_valid(seed, Placement.vee(2), 3)
        yield random_valid(seed, Placement.loop(2, 2), 3)
    yield from every_family(4)


def every_family(num_microbatches):
    """Every schedule there is, on two ranks; some hold stages twice, some mark overlaps."""
    for name in schedule_names():
        yield build_schedule(name, num_ranks=2, num_microbatches=num_microbatches)


def mutate(rng, rows):
    """Swap, drop, duplicate or move one entry; or exchange two rows."""
    rows = [list(row) for row in rows]
    row = rng.choice([row for row in rows if row])
    at, other = rng.randrange(len(row)), rng.randrange(len(row))
    match rng.choice(["swap", "next", "drop", "copy", "move", "rank", "rows"]):
        case "swap":
            row[at], row[other] = row[other], row[at]
        case "next":
            row[at : at + 2] = reversed(row[at : at + 2])
        case "drop":
            del row[at]
        case "copy":
            row.insert(other, row[at])
        case "move":
            row.insert(other, row.pop(at))
        case "rank":
            rng.choice(rows).append(row.pop(at))
        case "rows":
            rng.shuffle(rows)
    return tuple(map(tuple, rows))


def mutants(originals, rows_of, seed):
    rng = random.Random(seed)
    originals = list(originals)
    for _ in range(NUM_MUTANTS):
        original = rng.choice(originals)
        field = "actions" if rows_of == "actions" else "instructions"
        yield replace(original, **{field: mutate(rng, getattr(original, field))})


def marked_mutants(originals, rows_of, seed):
    """Orders whose marks of overlap are damaged; every other one's rows as well."""
    rng = random.Random(f"marks {seed}")
    originals = list(originals)
    for number in range(NUM_MARKED):
        original = rng.choice(originals)
        if number % 2:
            original = replace(original, **{rows_of: mutate(rng, getattr(original, rows_of))})
        yield (mark_schedule if rows_of == "actions" else mark_program)(rng, original)


def mutate_marks(rng, marks, places, pairs):
    """Drop a mark, move one by a slot or two, or add one: to two that could pair, or anywhere."""
    marks, change = set(marks), rng.choice(["drop", "move", "add", "pair"])
    if change in {"drop", "move"} and marks:
        rank, slot = rng.choice(sorted(marks))
        marks.remove((rank, slot))
        if change == "move":
            marks.add((rank, slot + rng.choice([-2, -1, 1, 2])))
    else:
        marks.add(rng.choice(pairs if pairs and change != "add" else places))
    return frozenset(marks)


def mark_schedule(rng, schedule):
    """Change the marks of a schedule; some are of slots or rows that there are not."""
    rows = schedule.actions
    places = [(r, slot) for r, row in enumerate(rows) for slot in range(-4, len(row) + 1)]
    pairs = [
        (r, slot)
        for r, row in enumerate(rows)
        for slot, (a, b) in enumerate(pairwise(row))
        if a.kind is F and b.kind in {B, I}
    ]
    marks = mutate_marks(rng, schedule.overlaps, [*places, (len(rows), 0), (-1, 0)], pairs)
    return replace(schedule, overlaps=marks)


def mark_program(rng, program):
    """Change the marks of a program, which only computes have; where there is none, nothing."""
    rows = program.instructions
    places = [(r, at) for r, row in enumerate(rows) for at in range(len(row))]
    pairs = [
        (r, at)
        for r, row in enumerate(rows)
        for at, (a, b) in enumerate(pairwise(row))
        if isinstance(a, Compute) and isinstance(b, Compute) and a.action.kind is F
    ]
    marked = {(r, at) for r, at in places if getattr(rows[r][at], "overlaps", False)}
    marks = mutate_marks(rng, marked, places, pairs)
    return replace(
        program,
        instructions=tuple(
            tuple(
                Compute(i.action, (r, at) in marks) if isinstance(i, Compute) else i
                for at, i in enumerate(row)
            )
            for r, row in enumerate(rows)
        ),
    )


def complete(actions, num_stages, num_microbatches):
    """Whether each stage and micro-batch has F, and B or I and W, once each; or none has either."""
    counts = Counter(actions)
    whole = ({F, B}, {F, I, W}) if {a.kind for a in counts} != {F} else ({F},)
    return max(counts.values()) == 1 and all(
        {a.kind for a in counts if (a.stage, a.microbatch) == (stage, mb)} in whole
        for stage in range(num_stages)
        for mb in range(num_microbatches)
    )


def can_run(action, done, last):
    """Whether what ``action`` needs is in ``done``; as the textbook has it."""
    stage, mb = action.stage, action.microbatch
    if action.kind is F:
        return stage == 0 or Action(stage - 1, F, mb) in done
    if action.kind is W:
        return Action(stage, I, mb) in done
    handed = {Action(stage + 1, B, mb), Action(stage + 1, I, mb)}
    return Action(stage, F, mb) in done and (stage == last or bool(handed & done))


def schedule_works(schedule):
    """Run the schedule by trying every rank over and over."""
    last = schedule.num_stages - 1
    if not all(
        home(schedule, a) == rank for rank, row in enumerate(schedule.actions) for a in row
    ) or not all(pairs_well(schedule, rank, slot) for rank, slot in schedule.overlaps):
        return False
    actions = [a for row in schedule.actions for a in row]
    if not complete(actions, schedule.num_stages, schedule.num_microbatches):
        return False
    queues, done = [deque(units(schedule, rank)) for rank in range(schedule.num_ranks)], set()
    for _ in actions:
        for queue in queues:
            if queue and all(can_run(action, done, last) for action in queue[0]):
                done.update(queue.popleft())
    return not any(queues)


def home(order, action):
    """The rank where an action belongs: replicas share the micro-batches out in order."""
    rows = (order.placement.rank_of, *order.placement.replicas)
    replica = int(action.microbatch / (order.num_microbatches / len(rows)))
    return rows[replica][action.stage]


def pairs_well(schedule, rank, slot):
    """Whether an overlap is of a forward and a backward of something else that follows it."""
    if not (0 <= rank < schedule.num_ranks and 0 <= slot < len(schedule.actions[rank])):
        return False
    first, *second = schedule.actions[rank][slot : slot + 2]
    if not second or first.kind is not F or second[0].kind not in {B, I}:
        return False
    return (first.stage, first.microbatch) != (second[0].stage, second[0].microbatch)


def units(schedule, rank):
    """Actions of a rank; those that overlap in one unit."""
    found = []
    for slot, action in enumerate(schedule.actions[rank]):
        if (rank, slot - 1) in schedule.overlaps:
            found[-1].append(action)
        else:
            found.append([action])
    return found


def program_works(program):
    """Run the program with one mailbox per directed pair of ranks; all must come out even.

    What overlaps must pair well, too, and be able to start together.
    """
    overlaps = any(c.overlaps for row in program.instructions for c in computes_of(row))
    if overlaps and not (
        schedule_works(order_of(program)) and all(map(side_by_side, program.instructions))
    ):
        return False
    machine = Machine(program)
    for _ in range(sum(map(len, program.instructions))):
        for rank in range(program.num_ranks):
            machine.step(rank)
    actions = [a for rank in range(program.num_ranks) for a in program.actions(rank)]
    stages, count = program.placement.num_stages, program.num_microbatches
    return machine.is_clean() and complete(actions, stages, count)


def side_by_side(row):
    """Whether what overlaps is followed by a compute."""
    return all(
        isinstance(after, Compute)
        for before, after in pairwise(row)
        if isinstance(before, Compute) and before.overlaps
    )


def computes_of(row):
    return [instruction for instruction in row if isinstance(instruction, Compute)]


def order_of(program):
    """The computes of a program alone."""
    rows = [computes_of(row) for row in program.instructions]
    overlaps = {(r, slot) for r, row in enumerate(rows) for slot, c in enumerate(row) if c.overlaps}
    actions = tuple(tuple(compute.action for compute in row) for row in rows)
    return Schedule("", program.placement, program.num_microbatches, actions, frozenset(overlaps))


class Machine:
    def __init__(self, program):
        self.program = program
        self.queues = [deque(row) for row in program.instructions]
        self.mail = {}
        self.has = [set() for _ in program.instructions]
        self.repeated, self.reduced = set(), set()
        self.is_broken = False

    def step(self, rank):
        if self.queues[rank] and self.does(rank, self.queues[rank][0]):
            self.queues[rank].popleft()

    def does(self, rank, instruction):
        """Whether the instruction could be done; what is wrong in itself breaks the machine."""
        has = self.has[rank]
        match instruction:
            case Compute(a):
                return self.computes(rank, a)
            case Send(message, peer):
                target = replace(message.source, stage=message.target_stage)
                right = home(self.program, target) == peer != rank
                self.is_broken |= message.source not in has or not right
                self.is_broken |= home(self.program, message.source) != rank
                self.mail.setdefault((rank, peer), deque()).append(message)
            case Recv(message, peer):
                box = self.mail.get((peer, rank))
                if not box:
                    return False
                self.is_broken |= box.popleft() != message or message.source in has
                has.add(message.source)
            case Recompute(a):
                later = {replace(a, kind=kind) for kind in (B, I)}
                self.is_broken |= home(self.program, a) != rank or a not in has
                self.is_broken |= bool(later & has) or a in self.repeated
                self.repeated.add(a)
            case ReduceGrads():
                self.is_broken |= rank in self.reduced
                self.reduced.add(rank)
        return True

    def computes(self, rank, action):
        last = self.program.placement.num_stages - 1
        self.is_broken |= home(self.program, action) != rank
        self.is_broken |= rank in self.reduced and action.kind is not F
        self.is_broken |= not can_run(action, self.has[rank], last)
        self.has[rank].add(action)
        return True

    def is_clean(self):
        return not (self.is_broken or any(self.queues) or any(self.mail.values()))


def dependencies_hold(timeline, num_stages):
    """On the clock, every action starts after what it needs has ended."""
    for span in timeline.spans:
        ended = {s.action for s in timeline.spans if s.end_s <= span.start_s}
        assert can_run(span.action, ended, num_stages - 1), span


def test_good_orders_work_here_too():
    """The judge of this file agrees on what is not damaged."""
    for schedule in good_schedules():
        assert schedule_works(schedule)
        assert program_works(lower(schedule, recompute={0}, reduce=True))


@pytest.mark.parametrize("kind", ["actions", "instructions"])
def test_damage_is_refused_or_harmless(kind, say):
    """A thousand schedules and programs: the verifier and this file's judge agree on each."""
    num_refused = num_found_harmful(kind, mutants, seed=1)

    say(f"{num_refused} of {NUM_MUTANTS} damaged {kind} refused, the rest does no harm")
    assert num_refused > NUM_MUTANTS / 2


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["actions", "instructions"])
def test_damaged_marks_are_refused_or_harmless(kind, seed, say):
    """Overlaps dropped, moved and added: the verifier and this file's judge agree on each."""
    num_refused = num_found_harmful(kind, marked_mutants, seed)

    say(f"{num_refused} of {NUM_MARKED} {kind} with damaged marks refused, the rest does no harm")
    assert NUM_MARKED / 4 < num_refused < NUM_MARKED


def num_found_harmful(kind, damaged, seed):
    """Hold the verifier against the judge; return how many mutants both refuse."""
    originals, works = good_schedules(), schedule_works
    if kind == "instructions":
        originals = (lower(s, recompute={0}, reduce=True) for s in originals)
        works = program_works
    num_refused = 0
    for mutant in damaged(originals, kind, seed):
        findings = check(mutant)
        assert bool(findings) != works(mutant), (str(mutant), findings)
        if findings:
            num_refused += 1
        else:
            num_stages = mutant.placement.num_stages
            dependencies_hold(simulate(mutant, CostModel.uniform(num_stages)), num_stages)
    return num_refused
