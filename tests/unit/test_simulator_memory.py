"""What ranks hold, in bytes over time."""

from dataclasses import replace
from itertools import pairwise

from hypothesis import given, settings
from order_samples import sched, valid_schedules

from intandem.costs import CostModel
from intandem.ir import Placement
from intandem.lowering import lower
from intandem.machine import Link, Machine
from intandem.simulator import memory_over_time, peak_activations, peak_bytes

UNIT = CostModel.uniform


def rows(order, costs, machine=None):
    """Per rank, (time, activations, pending, buffers)."""
    return [
        [(u.time_s, u.activation_bytes, u.pending_bytes, u.buffer_bytes) for u in row]
        for row in memory_over_time(order, costs, machine)
    ]


COSTS = replace(UNIT(2), activation_bytes=(10, 20), pending_bytes=(4, 6), boundary_bytes=(8,))


class TestOnTheClock:
    def test_activations_pending_gradients_and_messages(self):
        """A message has its link for 2 s and is there 1 s later.

        It lies on the sender for 1-3 and on the receiver for 1-4, the gradient for 6-8 and 6-9.
        """
        schedule = sched("0F0 0I0 0W0", "1F0 1I0 1W0")

        found = rows(schedule, COSTS, Machine(2, Link(1.0, 4.0)))

        assert found == [
            [
                (0, 10, 0, 0),
                (1, 10, 0, 8),
                (3, 10, 0, 0),
                (6, 10, 0, 8),
                (9, 10, 0, 0),
                (10, 0, 4, 0),
                (11, 0, 0, 0),
            ],
            [(1, 0, 0, 8), (4, 20, 0, 0), (6, 0, 6, 8), (7, 0, 0, 8), (8, 0, 0, 0)],
        ]
        assert peak_bytes(schedule, COSTS, Machine(2, Link(1.0, 4.0))) == (18, 20)

    def test_of_a_program(self):
        """Received early or late, a message is there until it is needed."""
        schedule = sched("0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1", microbatches=2)
        machine = Machine(2, Link(1.0, 4.0))

        assert rows(lower(schedule), COSTS, machine) == rows(schedule, COSTS, machine)

    def test_a_whole_backward_leaves_nothing_pending(self):
        """B frees all at its end."""
        assert rows(sched("0F0 0B0", "1F0 1B0"), replace(COSTS, boundary_bytes=())) == [
            [(0, 10, 0, 0), (6, 0, 0, 0)],
            [(1, 20, 0, 0), (4, 0, 0, 0)],
        ]

    def test_between_two_stages_of_a_rank(self):
        """What the second stage takes lies there once, from the end of 0F0 to the start of 1F0."""
        schedule = sched("0F0 0F1 1F0 1F1", microbatches=2, placement=Placement((0, 0)))

        found = rows(schedule, replace(COSTS, activation_bytes=(), pending_bytes=()))

        assert found == [[(1, 0, 0, 8), (2, 0, 0, 8), (3, 0, 0, 0)]]

    def test_evaluation_keeps_nothing(self):
        """Without backwards, a stage holds activations while its forward runs."""
        assert rows(sched("0F0", "1F0"), replace(COSTS, boundary_bytes=())) == [
            [(0, 10, 0, 0), (1, 0, 0, 0)],
            [(1, 20, 0, 0), (2, 0, 0, 0)],
        ]

    def test_recomputation_keeps_the_input(self):
        """Stage 1 keeps its input from its F, at 1, to its second one, at 2, and then the rest."""
        program = lower(sched("0F0 0B0", "1F0 1B0"), recompute={1})

        assert rows(program, COSTS)[1] == [(1, 8, 0, 0), (2, 20, 0, 0), (5, 0, 0, 0)]

    def test_unknown_bytes_count_nothing(self):
        """Costs without bytes hold none."""
        assert peak_bytes(sched("0F0 0B0", "1F0 1B0"), UNIT(2)) == (0, 0)


@given(valid_schedules)
@settings(max_examples=100, deadline=None)
def test_bytes_of_one_are_counts(schedule):
    """If a stage keeps a byte until its B or W, the most bytes are the most activations."""
    num = schedule.num_stages
    costs = replace(UNIT(num), activation_bytes=(1,) * num, pending_bytes=(1,) * num)

    assert peak_bytes(schedule, costs) == peak_activations(schedule)


@given(valid_schedules)
@settings(max_examples=100, deadline=None)
def test_all_is_given_back(schedule):
    """At the end nothing is held, and never less than nothing."""
    num = schedule.num_stages
    sizes = {"activation_bytes": (5,) * num, "pending_bytes": (3,) * num}
    costs = replace(UNIT(num), **sizes, boundary_bytes=(2,) * (num - 1))

    for row in memory_over_time(schedule, costs, Machine(schedule.num_ranks, Link(0.5, 4.0))):
        held = [(u.activation_bytes, u.pending_bytes, u.buffer_bytes) for u in row]
        assert min(min(parts) for parts in held) == 0
        assert held[-1] == (0, 0, 0)
        assert all(a.time_s < b.time_s for a, b in pairwise(row))
