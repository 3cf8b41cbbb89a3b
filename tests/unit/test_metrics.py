"""A loss function may return metrics too; every rank reads the whole batch's."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import intandem as it
from intandem.errors import ActionError, LossError
from intandem.runtime.losses import LossTerm, loss_term
from intandem.runtime.tally import LossTally

OPTIONS = it.Options(threads_per_rank=1)


def task(rows=7):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3), nn.Tanh()).double()
    return model, (torch.randn(rows, 6).double(), torch.randint(3, (rows,)))


def classified(output, batch):
    """A mean over rows, one over what is of class 0, a plain number, and a whole number."""
    hits, of_zero = output.argmax(1) == batch[1], batch[1] == 0
    return {
        "loss": F.cross_entropy(output, batch[1]),
        "accuracy": hits.double().mean(),
        "recall": it.LossSum(hits[of_zero].sum(), of_zero.sum()),
        "rows": it.LossSum(len(output), 1),
        "one": 1,
    }


@pytest.mark.parametrize("ranks", [1, 2])
def test_metrics_of_the_whole_batch(ranks):
    """Uneven micro-batches, some without class 0: what one process computes on all rows."""
    model, batch = task()
    expected = classified(model(batch[0]), batch)
    with it.Pipeline(
        model, example=batch, loss=classified, ranks=ranks, microbatches=3, options=OPTIONS
    ) as pipe:
        loss, evaluated = pipe.step(batch), pipe.evaluate(batch)
    for found in (loss, evaluated, pickle.loads(pickle.dumps(loss)), copy.deepcopy(evaluated)):
        assert list(found.metrics) == ["accuracy", "recall", "rows", "one"]
        assert found == pytest.approx(expected["loss"].item(), rel=1e-12)
        assert found.metrics["accuracy"] == pytest.approx(expected["accuracy"].item(), rel=1e-12)
        recall = expected["recall"]
        assert found.metrics["recall"] == pytest.approx(float(recall.sum / recall.count), rel=1e-12)
        assert found.metrics["rows"] == pytest.approx(7 / 3)
        assert found.metrics["one"] == 1


def test_only_the_loss_is_differentiated():
    """Metrics leave gradients as they are, and keep no graph."""
    model, batch = task()
    twin = copy.deepcopy(model)
    for each, loss in ((model, classified), (twin, lambda o, b: classified(o, b)["loss"])):
        with it.Pipeline(each, example=batch, loss=loss, ranks=1, microbatches=3) as pipe:
            pipe.step(batch)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    term = loss_term(model(batch[0]), batch, classified)
    assert not any(metric.root.requires_grad for metric in term.metrics.values())


def test_metrics_beside_a_sum():
    """A LossSum as the loss: its metrics are weighed by their own counts."""

    def loss(output, batch):
        kept = batch[1] != 2
        total = it.LossSum(
            F.cross_entropy(output[kept], batch[1][kept], reduction="sum"), kept.sum()
        )
        return {"loss": total, "mean": output.mean()}

    model, batch = task()
    kept = batch[1] != 2
    expected = F.cross_entropy(model(batch[0])[kept], batch[1][kept])
    with it.Pipeline(model, example=batch, loss=loss, ranks=2, microbatches=3) as pipe:
        found = pipe.step(batch)
    assert found == pytest.approx(expected.item(), rel=1e-12)
    assert found.metrics["mean"] == pytest.approx(model(batch[0]).mean().item(), rel=1e-12)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"total": torch.ones(())}, "a mapping with 'total' and no 'loss'"),
        ({}, "a mapping with nothing and no 'loss'"),
        ({"loss": torch.ones(()), "logits": torch.ones(3)}, r"metric 'logits' has shape \(3,\)"),
        ({"loss": torch.ones(()), "name": "x"}, "metric 'name' is a str; expected a scalar"),
        ({"loss": torch.ones(()), 3: 1.0}, "a metric is called 3, a int; expected a str"),
        (
            {"loss": torch.ones(()), "a": it.LossSum(torch.ones(2), 1)},
            "LossSum.sum of metric 'a' has",
        ),
    ],
)
def test_what_is_no_metric(returned, message):
    """Anything else is refused by name."""
    with pytest.raises(LossError, match=message):
        loss_term(None, None, lambda *_: returned)


def term(**metrics):
    one = torch.ones(())
    kinds = {name: LossTerm(one, count) for name, count in metrics.items()}
    return LossTerm(one, None, kinds)


def test_metrics_that_change_between_micro_batches():
    """Names and kinds are the same in every micro-batch of a step."""
    for other in (term(a=None), term(a=1.0, b=1.0), term()):
        tally = LossTally([0.5, 0.5])
        tally.add(0, term(a=1.0))
        with pytest.raises(
            LossError, match=r"the metrics of micro-batch 1 are .*\ba \(LossSum\); r"
        ):
            tally.add(1, other)

    def loss(output, batch):
        found = {"loss": output.mean()}
        return found | ({"extra": 1.0} if batch[1][0] == batch[1][-1] else {})

    model, (x, _) = task(4)
    with it.Pipeline(
        model, example=(x, torch.zeros(4)), loss=loss, ranks=1, microbatches=2
    ) as pipe:
        pipe.step((x, torch.zeros(4)))
        with pytest.raises(ActionError, match=r"micro-batch 1 are none, .* extra \(scalar\); retu"):
            pipe.step((x, torch.tensor([0, 0, 0, 1])))


def test_backward_of_an_evaluation():
    """It says that there are no gradients, and which call has them."""
    model, batch = task()
    with it.Pipeline(model, example=batch, loss=classified, ranks=1, microbatches=2) as pipe:
        with pytest.raises(
            LossError, match=r"evaluate\(\) computes no gradients; .* step\(batch\)"
        ):
            pipe.evaluate(batch).backward()
        assert repr(pipe.evaluate(batch)).startswith("EvaluationLoss(")
