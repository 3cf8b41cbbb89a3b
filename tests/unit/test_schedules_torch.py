"""Orders that torch.distributed.pipelining builds too are the same ones."""

from itertools import product

import pytest
from torch.distributed.pipelining.schedules import ScheduleDualPipeV, ScheduleInterleaved1F1B

from intandem.schedules import build_schedule


def theirs(schedule, num_ranks, num_microbatches, **more):
    """Rows of words, from a schedule made without stages; a pair is one word there."""
    made = schedule.__new__(schedule)
    made.pp_group_size, made._n_microbatches = num_ranks, num_microbatches
    for key, value in more.items():
        setattr(made, key, value)
    rows = (made._calculate_single_rank_operations(rank) for rank in range(num_ranks))
    return [[word(action) for action in row if action is not None] for row in rows]


def word(action):
    if action.sub_actions:
        return "&".join(map(word, action.sub_actions))
    return f"{action.stage_index}{action.computation_type.value}{action.microbatch_index}"


def ours(schedule):
    text = str(schedule).splitlines()
    return [row.partition(": ")[2].replace("& ", "&").split() for row in text]


@pytest.mark.parametrize("v", [2, 3])
def test_interleaved(v):
    """For every number of micro-batches that torch takes."""
    for p, m in product((2, 3, 4), (2, 3, 4, 6, 8, 9, 10, 12)):
        rounds = max(1, m // p)
        if m % rounds == 0:
            schedule = build_schedule(
                "interleaved", num_ranks=p, num_microbatches=m, stages_per_rank=v
            )

            rows = theirs(
                ScheduleInterleaved1F1B, p, m, n_local_stages=v, microbatches_per_round=m // rounds
            )

            assert ours(schedule) == rows


def test_dualpipe_v():
    """From 2P micro-batches on, pairs included."""
    for p, m in product((1, 2, 3, 4), (8, 9, 12)):
        schedule = build_schedule("dualpipe-v", num_ranks=p, num_microbatches=m)

        rows = theirs(ScheduleDualPipeV, p, m)

        assert ours(schedule) == rows
