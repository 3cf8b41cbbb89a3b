"""A pipeline has one process's numbers: loss, every gradient, every buffer, in float64."""

import pytest

from harness import (
    in_tandem,
    max_stages,
    plain,
    repeatable_cuts,
)
from intandem.equality import compare
from intandem.schedules import schedule_names
from models import SAMPLES

pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")

SCHEDULES = schedule_names()
RECOMPUTE = ("none", "all")
MICROBATCHES = range(1, 10)
"""The batches have 7 rows, so 2..6 do not divide them and 8 and 9 are more than there are."""

FEW = [(1, "gpipe", "all", 3), (2, "1f1b", "none", 4), (3, "naive", "none", 5),
       (4, "1f1b", "all", 2), (4, "gpipe", "none", 9)]  # fmt: skip


def assert_equal(name, ranks, schedule, recompute, microbatches):
    """Hold a pipeline against the plain model; fewer stages if the model has fewer parts."""
    ranks = min(ranks, max_stages(name))
    with repeatable_cuts(seed=microbatches):
        found = in_tandem(
            SAMPLES[name](),
            ranks=ranks,
            schedule=schedule,
            recompute=recompute,
            microbatches=microbatches,
        )
    equality = compare(found, plain(name, microbatches))
    assert equality.equal, (equality.loss_error, equality.worst())


@pytest.mark.parametrize(("ranks", "schedule", "recompute", "microbatches"), FEW)
@pytest.mark.parametrize("name", SAMPLES)
def test_every_kind_of_model(name, ranks, schedule, recompute, microbatches):
    """Every kind of model gives one process's loss, gradients and buffers."""
    assert_equal(name, ranks, schedule, recompute, microbatches)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("name", SAMPLES)
def test_whole_matrix(name, ranks, schedule, recompute):
    """The same at every number of ranks, schedule, recomputation and 1 to 9 micro-batches."""
    if ranks > max_stages(name):
        pytest.skip(f"{name} has {max_stages(name)} parts")
    for microbatches in MICROBATCHES:
        assert_equal(name, ranks, schedule, recompute, microbatches)
