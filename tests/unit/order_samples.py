"""Schedules and programs for tests: from text, drawn at random, and split or folded."""

import random
from dataclasses import replace

from hypothesis import strategies as st

from intandem.ir import (
    Action,
    ActionKind,
    Compute,
    Message,
    Placement,
    Program,
    Recompute,
    Recv,
    ReduceGrads,
    Schedule,
    Send,
    StageLinks,
)
from intandem.ir.text import parse_instruction

F, B, I, W = ActionKind  # noqa: E741


def sched(*rows, microbatches=1, placement=None):
    """Build a schedule from its text, one string per rank."""
    actions = tuple(tuple(Action.parse(a) for a in row.split()) for row in rows)
    return Schedule("sample", placement or Placement.loop(len(rows)), microbatches, actions)


def prog(*rows, microbatches=1, links=None):
    """Build a program from its text, one string per rank; one stage per rank, in a chain."""
    instructions = tuple(tuple(map(parse_instruction, row.split())) for row in rows)
    placement = Placement.loop(len(rows))
    links = links or StageLinks.chain(len(rows))
    return Program("sample", placement, microbatches, links, instructions)


def split_backwards(schedule):
    """Replace each B by I and, directly after it, W."""
    rows = tuple(
        tuple(
            half
            for a in row
            for half in ((replace(a, kind=I), replace(a, kind=W)) if a.kind is B else (a,))
        )
        for row in schedule.actions
    )
    return replace(schedule, name=f"{schedule.name}-split", actions=rows)


def random_valid(seed, placement, num_microbatches):
    """A valid schedule: run any action that is ready, in random order, B whole or split."""
    rng = random.Random(seed)
    last = placement.num_stages - 1
    ready = [Action(0, F, mb) for mb in range(num_microbatches)]
    rows = [[] for _ in range(placement.num_ranks)]
    while ready:
        action = ready.pop(rng.randrange(len(ready)))
        stage, mb = action.stage, action.microbatch
        rows[placement.rank_for(stage, mb, num_microbatches)].append(action)
        if action.kind is F and stage < last:
            ready.append(Action(stage + 1, F, mb))
        elif action.kind is F:
            ready.append(Action(stage, rng.choice((B, I)), mb))
        elif action.kind is not W and stage > 0:
            ready.append(Action(stage - 1, rng.choice((B, I)), mb))
        if action.kind is I:
            ready.append(Action(stage, W, mb))
    return Schedule("random", placement, num_microbatches, tuple(map(tuple, rows)))


PLACEMENTS = st.one_of(
    st.builds(Placement.loop, st.integers(1, 4), st.integers(1, 2)),
    st.builds(Placement.vee, st.integers(1, 3)),
)
valid_schedules = st.builds(random_valid, st.integers(0, 2**32), PLACEMENTS, st.integers(1, 5))

numbers = st.integers(0, 5)
actions = st.builds(Action, numbers, st.sampled_from(ActionKind), numbers)
messages = st.builds(Message, actions, numbers)
instructions = st.one_of(
    st.builds(Compute, actions),
    st.builds(Send, messages, numbers),
    st.builds(Recv, messages, numbers),
    st.builds(Recompute, actions),
    st.builds(ReduceGrads),
)
names = st.one_of(st.sampled_from(["1f1b", "zb-h1", ""]), st.text(max_size=8))


def placements(ranks):
    return st.builds(Placement, st.lists(ranks, max_size=4).map(tuple))


def rows_of(elements):
    return st.lists(st.lists(elements, max_size=5).map(tuple), max_size=4).map(tuple)


pairs = st.lists(st.tuples(numbers, numbers), max_size=3).map(tuple)
readable_schedules = st.builds(Schedule, names, placements(numbers), numbers, rows_of(actions))
readable_programs = st.builds(
    Program,
    names,
    placements(numbers),
    numbers,
    st.builds(StageLinks, pairs, pairs),
    rows_of(instructions),
)

anything = st.one_of(st.integers(-2, 4), st.sampled_from([-(10**9), 10**9]))
any_actions = st.builds(Action, anything, st.sampled_from(ActionKind), anything)
any_messages = st.builds(Message, any_actions, anything)
any_instructions = st.one_of(
    st.builds(Compute, any_actions),
    st.builds(Send, any_messages, anything),
    st.builds(Recv, any_messages, anything),
    st.builds(Recompute, any_actions),
    st.builds(ReduceGrads),
)
any_schedules = st.builds(Schedule, names, placements(anything), anything, rows_of(any_actions))
any_pairs = st.lists(st.tuples(anything, anything), max_size=3).map(tuple)
any_programs = st.builds(
    Program,
    names,
    placements(anything),
    anything,
    st.builds(StageLinks, any_pairs, any_pairs),
    rows_of(any_instructions),
)
