"""What ran is what was lowered: the order of actions on every rank, and how often each ran."""

from collections import Counter
from itertools import pairwise

import pytest

import intandem as it
from harness import pipeline, repeatable_cuts
from intandem.ir import ActionKind
from intandem.lowering import lower
from models import SAMPLES


def recorded(name, ranks, microbatches, **kwargs):
    """Program and timeline of a step of a sample."""
    sample = SAMPLES[name]()
    with (
        repeatable_cuts(),
        pipeline(sample, ranks=ranks, microbatches=microbatches, **kwargs) as pipe,
    ):
        pipe.step(sample.batch)
        return pipe.program(), pipe.timeline()


@pytest.mark.parametrize("recompute", ["none", "all"])
@pytest.mark.parametrize("schedule", ["naive", "gpipe", "1f1b"])
@pytest.mark.parametrize(("ranks", "microbatches"), [(1, 3), (2, 5), (3, 2), (4, 7)])
def test_order_of_actions(schedule, ranks, microbatches, recompute):
    """Every rank ran the actions of its row of the schedule, in that order, one at a time."""
    program, timeline = recorded("mlp", ranks, microbatches, schedule=schedule, recompute=recompute)
    built = it.build_schedule(schedule, num_ranks=ranks, num_microbatches=microbatches)
    simulated = it.simulate(lower(built), it.CostModel.uniform(ranks))
    for rank in range(ranks):
        spans = timeline.of_rank(rank)
        ran = tuple(span.action for span in spans)
        assert ran == built.actions[rank] == program.actions(rank)
        assert ran == tuple(span.action for span in simulated.of_rank(rank))
        assert all(a.end_s <= b.start_s for a, b in pairwise(spans))


@pytest.mark.parametrize("schedule", ["naive", "gpipe", "1f1b"])
@pytest.mark.parametrize("name", ["gpt_tied", "unet"])
def test_each_action_ran_once(name, schedule):
    """F and B of every stage and micro-batch ran once, and in the order of their dependencies."""
    program, timeline = recorded(name, 3, 4, schedule=schedule)
    count = Counter((s.action.kind, s.action.stage, s.action.microbatch) for s in timeline.spans)
    assert count == Counter(
        (kind, stage, mb)
        for kind in (ActionKind.F, ActionKind.B)
        for stage in range(3)
        for mb in range(4)
    )
    ends = {str(span.action): span.end_s for span in timeline.spans}
    starts = {str(span.action): span.start_s for span in timeline.spans}
    for row in program.instructions:
        for instruction in row:
            message = getattr(instruction, "message", None)
            if message is not None:
                kind = "F" if message.source.kind is ActionKind.F else "B"
                target = f"{message.target_stage}{kind}{message.source.microbatch}"
                assert ends[str(message.source)] <= starts[target]


def test_program_is_what_is_lowered_for_the_models_links():
    """The executed program is the schedule lowered with the model's skips and tied weights."""
    program, _ = recorded("gpt_tied", 3, 2, schedule="1f1b", recompute="all")
    schedule = it.build_schedule("1f1b", num_ranks=3, num_microbatches=2)
    everything = frozenset(range(3))
    assert program == lower(schedule, program.links, recompute=everything, reduce=True)
    plain_program, _ = recorded("mlp", 3, 2, schedule="1f1b")
    assert plain_program == lower(schedule)


def test_nothing_to_show_before_the_first_step():
    """Before a step there is neither program nor timeline, and the errors say so."""
    sample = SAMPLES["mlp"]()
    with pipeline(sample, ranks=2, microbatches=2) as pipe:
        pipe.evaluate(sample.batch)
        for show in (pipe.timeline, pipe.program, pipe.report_value):
            with pytest.raises(it.PipelineError, match="no step has run yet, so there is nothing"):
                show()
