"""What a step holds on a GPU, in bytes as they are allocated, is what the schedule says."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from gpu.parts import QUICK, memory

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: make test-gpu"),
]


@pytest.mark.parametrize(
    ("ranks", "schedule"), [(1, "gpipe"), (1, "1f1b"), (1, "zb-h1"), (2, "gpipe"), (2, "1f1b")]
)
def test_predicted_and_allocated_bytes(ranks, schedule):
    """Activations of the plain model's stages, as many as the schedule keeps at once.

    Beside them there is what a forward or backward needs while it runs, on each rank.
    """
    found = memory(QUICK[0], "cuda", ranks, schedule)
    predicted = found["predicted_bytes"]
    beside = sum(found["activation_bytes"]) / 3
    assert 0.9 * predicted <= found["measured_bytes"] <= predicted + beside


@pytest.mark.parametrize(("schedule", "grows"), [("gpipe", True), ("1f1b", False)])
def test_live_bytes_do_not_depend_on_m_where_the_schedules_do_not(schedule, grows):
    """Four times the micro-batches: four times the bytes of gpipe, and those of 1f1b as before."""
    found = [
        memory(QUICK[0]._replace(microbatches=count), "cuda", 2, schedule) for count in (4, 16)
    ]
    few, many = (one["measured_bytes"] for one in found)
    one = sum(found[0]["activation_bytes"])
    assert (many - few > 11 * one) if grows else (many - few < one / 3)
