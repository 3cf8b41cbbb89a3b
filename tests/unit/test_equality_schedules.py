"""Every schedule has one process's numbers, on local ranks, and runs in the order it states."""

import functools
from itertools import pairwise

import pytest

import intandem as it
from deep_models import DEEP, UPDATING
from harness import numbers_of_step, relative_error, repeatable_cuts
from intandem.equality import Splitting, compare, one_process
from intandem.errors import CaptureError, ScheduleError
from intandem.schedules import schedule_names

pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")

FORWARD_ONLY = {"forward-only"}
TRAINING = [name for name in schedule_names() if name not in FORWARD_ONLY]
MICROBATCHES = (3, 8, 10)
"""10 rows: uneven, uneven, one row each."""
FAST = ("tied_language_model", "skips", "padded_language_model")


@functools.cache
def plain(family, microbatches):
    """Numbers of a family in plain PyTorch."""
    return one_process(*DEEP[family](), Splitting(microbatches))


def built(schedule, ranks, microbatches):
    """The schedule; skips where it is not for these numbers."""
    try:
        return it.build_schedule(schedule, num_ranks=ranks, num_microbatches=microbatches)
    except ScheduleError as error:
        pytest.skip(str(error))


def assert_equal(family, schedule, ranks, microbatches, recompute):
    """Hold a step against the plain model, and the order that ran against the schedule's."""
    order = built(schedule, ranks, microbatches)
    if order.placement.replicas and family in UPDATING:
        pytest.skip("replicas do not update buffers")
    with repeatable_cuts(seed=microbatches):
        found, timeline = numbers_of_step(
            DEEP[family](), ranks=ranks, schedule=schedule, microbatches=microbatches,
            recompute=recompute,
        )  # fmt: skip
    equality = compare(found, plain(family, microbatches))
    assert equality.equal, (equality.loss_error, equality.worst())
    for rank in range(ranks):
        spans = timeline.of_rank(rank)
        assert len(spans) == len(order.actions[rank])
        assert all(a.end_s <= b.start_s for a, b in pairwise(spans))
        if not cost_driven(schedule):
            assert tuple(span.action for span in spans) == order.actions[rank]


def cost_driven(schedule):
    """Whether the order follows the measured costs of the stages."""
    from intandem.schedules.registry import leaves_open

    return leaves_open(schedule, "costs")


@pytest.mark.parametrize(("ranks", "microbatches", "recompute"), [(2, 8, "none"), (4, 8, "all")])
@pytest.mark.parametrize("family", FAST)
@pytest.mark.parametrize("schedule", TRAINING)
def test_every_schedule(schedule, family, ranks, microbatches, recompute):
    """Two and four ranks, tied weights, skips and counted losses: one process's numbers."""
    assert_equal(family, schedule, ranks, microbatches, recompute)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["none", "all"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("family", DEEP)
@pytest.mark.parametrize("schedule", TRAINING)
def test_whole_matrix(schedule, family, ranks, recompute):
    """Every family of model at every number of ranks, with several numbers of micro-batches."""
    for microbatches in MICROBATCHES:
        assert_equal(family, schedule, ranks, microbatches, recompute)


@pytest.mark.parametrize("schedule", TRAINING)
def test_replicas_of_every_schedule(schedule):
    """Data parallelism around any schedule: replicas of replicas among them."""
    microbatches = 8
    try:
        with repeatable_cuts():
            found, _ = numbers_of_step(
                DEEP["tied_language_model"](), ranks=4, replicas=2, schedule=schedule,
                microbatches=microbatches,
            )  # fmt: skip
    except ScheduleError as error:
        pytest.skip(str(error))
    equality = compare(found, plain("tied_language_model", microbatches))
    assert equality.equal, (equality.loss_error, equality.worst())


@pytest.mark.parametrize("name", sorted(FORWARD_ONLY))
def test_no_backward_does_not_train(name):
    """A schedule without backwards evaluates and predicts, and refuses to step."""
    sample = DEEP["layers"]()
    with it.Pipeline(
        sample.model, example=sample.batch, loss=sample.loss, ranks=2, schedule=name
    ) as pipe:
        expected = sample.loss(sample.model(sample.batch[0]), sample.batch)
        assert pipe.evaluate(sample.batch) == pytest.approx(float(expected.detach()), rel=1e-12)
        assert len(pipe.predict(sample.batch)) == len(sample.batch[0])
        with pytest.raises(ScheduleError, match="has no backward, so step"):
            pipe.step(sample.batch)


def test_stages_by_hand_on_several_ranks():
    """A list of stages is dealt out to the ranks that there are, as the schedule places them."""
    ours, theirs = DEEP["layers"](), DEEP["layers"]()
    stages = list(ours.model)[:8]
    expected = one_process(theirs.model[:8], theirs.batch, theirs.loss, Splitting(4))
    with it.Pipeline(
        stages, example=ours.batch, loss=ours.loss, ranks=2, schedule="interleaved", microbatches=4
    ) as pipe:
        assert float(pipe.step(ours.batch)) == pytest.approx(expected.loss, rel=1e-12)
        assert pipe.program().placement.rank_of == (0, 1) * 4
        found = {name: p.grad for name, p in pipe.named_parameters()}
    assert relative_error(found, expected.gradients) <= 1e-12


def test_too_few_parts_for_the_schedule():
    """The remedy counts stages per rank."""
    sample = DEEP["layers"]()
    with pytest.raises(CaptureError, match=r"9 stages at most .* has 12; use ranks=4 or fewer"):
        it.Pipeline(
            sample.model, example=sample.batch, loss=sample.loss, ranks=6, schedule="interleaved"
        )


@pytest.mark.parametrize("family", ["tied_language_model", "skips"])
@pytest.mark.parametrize(("ranks", "stages_per_rank", "cap"), [(2, 1, 2), (3, 1, 2), (2, 2, 3)])
def test_what_search_finds(family, ranks, stages_per_rank, cap):
    """A schedule that is searched for, with unequal stages below a cap, runs as it is found."""
    num_stages = ranks * stages_per_rank
    uneven = [tuple(1 + s * factor % 3 / 4 for s in range(num_stages)) for factor in (1, 2, 4)]
    costs = it.CostModel(*uneven, latency_s=0.1)
    found = it.search(
        costs, num_ranks=ranks, num_microbatches=8, memory_cap=cap, solver="none", effort=0.05
    )
    with repeatable_cuts():
        numbers, timeline = numbers_of_step(DEEP[family](), ranks=ranks, schedule=found.schedule)
    equality = compare(numbers, plain(family, 8))
    assert equality.equal, equality.worst()
    for rank in range(ranks):
        ran = tuple(span.action for span in timeline.of_rank(rank))
        assert ran == found.schedule.actions[rank]
