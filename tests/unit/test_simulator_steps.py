"""Steps one after another: reductions, optimizers, barriers and none."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machine_samples import cases, costs_of, machines
from order_samples import sched, valid_schedules
from ticks import Ticks

from intandem.costs import CostModel
from intandem.errors import ScheduleVerifyError
from intandem.ir import Placement, Schedule
from intandem.lowering import lower
from intandem.machine import Link, Machine
from intandem.schedules import build_schedule
from intandem.simulator import simulate, simulate_steps

UNIT = CostModel.uniform
TWO_REPLICAS = sched(
    "0F0 0B0", "0F1 0B1", "1F0 1B0", "1F1 1B1", microbatches=2,
    placement=Placement((0, 2), ((1, 3),)),
)  # fmt: skip


class TestOnTheClock:
    def test_one_rank(self):
        """F, B and the optimizer, three times; a barrier changes nothing."""
        costs = replace(UNIT(1), optimizer_s=(0.5,))

        sequence = simulate_steps(sched("0F0 0B0"), costs, num_steps=3)

        assert sequence.ends_s == ((3.5,), (7.0,), (10.5,))
        assert sequence.makespan_s == sequence.barrier_makespan_s == 10.5
        assert sequence.steady_step_s == sequence.barrier_step_s == 3.5

    def test_a_rank_begins_when_it_is_done_itself(self):
        """Forwards of two stages: the second step's first runs beside the first step's second."""
        sequence = simulate_steps(sched("0F0", "1F0"), UNIT(2), num_steps=3)

        assert sequence.ends_s == ((1, 2), (2, 3), (3, 4))
        assert (sequence.makespan_s, sequence.barrier_makespan_s) == (4, 6)
        assert (sequence.steady_step_s, sequence.barrier_step_s) == (1, 2)
        assert sequence.period == 1

    def test_weights_are_updated_before_the_next_forward(self):
        """The optimizer holds its own rank."""
        costs = replace(UNIT(2), optimizer_s=(1.0, 0.0))

        assert simulate_steps(sched("0F0", "1F0"), costs, num_steps=2).ends_s == ((2, 2), (4, 4))

    def test_a_zero_bubble_is_one_without_a_barrier(self):
        """Two ranks, four micro-batches, W's that fill all gaps: 12 s of work in 12 s per step."""
        schedule = sched(
            "0F0 0F1 0F2 0I0 0F3 0I1 0W0 0I2 0W1 0I3 0W2 0W3",
            "1F0 1I0 1F1 1I1 1F2 1I2 1F3 1I3 1W0 1W1 1W2 1W3",
            microbatches=4,
        )

        sequence = simulate_steps(schedule, UNIT(2), num_steps=8)

        assert (sequence.barrier_step_s, sequence.steady_step_s) == (13, 12)
        assert sequence.makespan_s == 8 * 12 + 1

    def test_holders_of_a_stage_reduce_together(self):
        """Ranks 0 and 1 are done at 6 and 10, ranks 2 and 3 at 4 and 8."""
        costs = replace(UNIT(2), reduction_s=(1.0, 10.0))
        machine = Machine(4, links={(1, 3): Link(4.0)})

        assert simulate_steps(TWO_REPLICAS, costs, machine, num_steps=1).ends_s == (
            (11, 11, 18, 18),
        )

    def test_a_reduction_moves_bytes(self):
        """4 bytes at 2 per second, on top of what it takes anyway; then the optimizer."""
        costs = replace(UNIT(1), reduction_s=(1.0,), gradient_bytes=(4,), optimizer_s=(0.25,))
        machine = Machine(1, reduction_bytes_per_s=2.0)

        assert simulate_steps(sched("0F0 0B0"), costs, machine, num_steps=1).ends_s == ((6.25,),)
        alone = replace(costs, bandwidth_bytes_per_s=4.0)
        assert simulate_steps(sched("0F0 0B0"), alone, num_steps=1).ends_s == ((5.25,),)

    def test_a_program_reduces_once(self):
        """Where it says so, or else at its end. Rank 1 is at it for 4-14 and 17-27."""
        costs = replace(UNIT(2), reduction_s=(1.0, 10.0))
        schedule = sched("0F0 0B0", "1F0 1B0")

        ends = [
            simulate_steps(order, costs, num_steps=2).ends_s
            for order in (schedule, lower(schedule), lower(schedule, reduce=True))
        ]

        assert ends == [((7, 14), (20, 27))] * 3

    def test_steps_that_drift_apart(self):
        """A slow last rank, and nothing that holds up the first: no period; the mean is told."""
        costs = replace(UNIT(2), forward_s=(1.0, 3.0))

        sequence = simulate_steps(sched("0F0", "1F0"), costs, num_steps=9)

        assert sequence.period is None
        assert sequence.steady_step_s == 3

    @pytest.mark.parametrize("num_steps", [0, -1])
    def test_refuses_no_step(self, num_steps):
        """The message has the number."""
        with pytest.raises(ValueError, match=f"num_steps is {num_steps}; expected at least 1"):
            simulate_steps(sched("0F0 0B0"), UNIT(1), num_steps=num_steps)

    def test_refuses_what_is_invalid(self):
        """As ``simulate`` does."""
        with pytest.raises(ScheduleVerifyError, match="S003"):
            simulate_steps(sched("0B0 0F0"), UNIT(1), num_steps=2)


@given(cases())
@settings(max_examples=80, deadline=None)
def test_a_step_ends_as_in_a_second_simulator(case):
    """With reductions of stages held once or several times."""
    schedule, costs, machine = case

    ticks = Ticks(lower(schedule, reduce=True), costs, machine)

    assert list(simulate_steps(schedule, costs, machine, num_steps=1).ends_s[0]) == ticks.ends


@given(valid_schedules, st.integers(2, 4), st.data())
@settings(max_examples=80, deadline=None)
def test_steps_are_one_long_schedule(schedule, num_steps, data):
    """Without reductions and optimizers: the micro-batches of each step after those of the last."""
    count = schedule.num_microbatches
    rows = tuple(
        tuple(
            replace(a, microbatch=a.microbatch + step * count)
            for step in range(num_steps)
            for a in row
        )
        for row in schedule.actions
    )
    long = Schedule("long", schedule.placement, num_steps * count, rows)
    costs = replace(data.draw(costs_of(schedule.num_stages)), reduction_s=())
    machine = data.draw(
        machines(schedule.num_ranks).map(lambda m: replace(m, transfers_overlap=True))
    )

    sequence = simulate_steps(schedule, costs, machine, num_steps=num_steps)

    timeline = simulate(long, costs, machine)
    for rank, row in enumerate(schedule.actions):
        ends = [span.end_s for span in timeline.of_rank(rank)][len(row) - 1 :: len(row)]
        assert ends == [step[rank] for step in sequence.ends_s]


@given(valid_schedules)
@settings(max_examples=50, deadline=None)
def test_a_step_repeats_within_the_longest_rank(schedule):
    """Shifting every rank by the longest span obeys all that holds, so no step need take more."""
    costs = UNIT(schedule.num_stages, 2.0, 3.0, 4.0, 1.0)

    sequence = simulate_steps(schedule, costs, num_steps=12)

    timeline = simulate(schedule, costs)
    assert sequence.steady_step_s <= timeline.rank_span_s + 1e-9
    assert sequence.barrier_step_s == timeline.end_s
    assert sequence.makespan_s <= sequence.barrier_makespan_s


def test_1f1b_gains_nothing_without_a_barrier():
    """Its first rank is the first to begin and the last to end."""
    schedule = build_schedule("1f1b", num_ranks=4, num_microbatches=8)

    sequence = simulate_steps(schedule, UNIT(4), num_steps=5)

    assert sequence.steady_step_s == sequence.barrier_step_s == 33
