"""The ladder of ``bisect`` stands on every kind of job, and finds nothing where nothing is."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import intandem as it
from intandem.equality import bisect
from intandem.equality.differences import common_factor, compare_rows, first_difference
from intandem.equality.trace import Key, Result, Trace
from models import SAMPLES

GPIPE = it.build_schedule("gpipe", num_ranks=2, num_microbatches=4)

pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")


def contrastive(output, batch):
    del batch
    return F.cross_entropy(output @ output.flip(0).T, torch.arange(len(output)))


def mlp(loss=None):
    model, batch, own = SAMPLES["mlp"](8)
    return model, batch, loss or own


def in_parts():
    model, (x, y), loss = mlp()
    return model, [(x[:3], y[:3]), (x[3:], y[3:])], loss


def by_hand():
    model, batch, loss = mlp()
    return [nn.Sequential(*model[:2]), nn.Sequential(*model[2:])], batch, loss


JOBS = {
    "micro-batches already": (in_parts, {}, 7),
    "stages by hand": (by_hand, {}, 7),
    "a loss of the whole batch": (lambda: mlp(it.WholeBatchLoss(contrastive)), {}, 7),
    "a schedule as a value": (mlp, {"schedule": GPIPE}, 6),
    "split points": (mlp, {"split_points": ["2"]}, 6),
    "one micro-batch": (mlp, {"microbatches": 1}, 6),
    "one rank": (mlp, {"ranks": 1}, 6),
}


@pytest.mark.parametrize("name", JOBS)
def test_jobs_of_every_kind(name):
    """Every rung is climbed and none differs."""
    made, options, num_rungs = JOBS[name]
    recompute = "all" if num_rungs == 7 else "none"
    options = {"ranks": 2, "microbatches": 4, "recompute": recompute, **options}
    found = bisect(*made(), **options)
    assert found.equal, found
    assert found.finding is None
    assert found.information is None
    assert len(found.rungs) == num_rungs
    skipped = [rung.worst for rung in found.rungs if rung.error is None]
    assert skipped == (["the batch comes in micro-batches already"] if "already" in name else [])


def test_a_model_is_left_as_it_was():
    """No gradient, no buffer and no parameter of it changes."""
    model, batch, loss = SAMPLES["batch_norm"]()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    bisect(model, batch, loss, recompute="all")
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert model.training


# Parts.


def trace(**results):
    """A Trace of blocks: each a list of tensors, one per micro-batch."""
    made = Trace()
    for name, tensors in results.items():
        for index, tensor in enumerate(tensors):
            made.add(Key(name, "", 0), index, Result((tensor,)))
    return made


def test_the_first_difference():
    """It is the first call in forward order, of the first micro-batch in which it differs."""
    one, two = torch.ones(2), torch.ones(2)
    expected = trace(a=[one, one], b=[one, one], c=[one, one])
    found = trace(c=[2 * two, two], b=[two, 3 * two], a=[two, two])
    difference = first_difference(found, expected, 1e-12)
    assert difference.key.name == "b"
    assert difference.microbatch == 1
    assert difference.error == pytest.approx(2.0)
    assert first_difference(expected, expected, 0.0) is None


def test_rows_in_another_order():
    """``cat([x, -x])`` has the same rows for micro-batches; what is no rows is named apart."""
    x = torch.arange(1.0, 9.0).reshape(4, 2)
    whole = trace(a=[torch.cat([x, -x])], pairs=[x @ x.T], b=[x])
    halves = [x[:2], x[2:]]
    parts = trace(
        a=[torch.cat([h, -h]) for h in halves],
        pairs=[h @ h.T for h in halves],
        b=[h - h.mean() for h in halves],
    )
    first, mixing = compare_rows(parts, whole, 2, 1e-12)
    assert mixing.name == "pairs"
    assert first.key.name == "b"


def test_a_common_factor():
    """Gradients that are all as many times too large."""
    gradients = {"a": torch.randn(3), "b": None, "c": torch.randn(2, 2)}
    larger = {name: g if g is None else 4 * g for name, g in gradients.items()}
    assert common_factor(larger, gradients) == pytest.approx(4.0)
    assert common_factor({**larger, "a": gradients["a"]}, gradients) is None
