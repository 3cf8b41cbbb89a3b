"""What a loss is, how micro-batches' losses become the batch's, and how it is read."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import intandem as it
from intandem.errors import LossError, NonFiniteLossError
from intandem.runtime.loss_report import LossReport, StepLoss
from intandem.runtime.losses import LossTerm, draws_nothing, gradient_seed, loss_term
from intandem.runtime.tally import LossTally


def scalar(value):
    return torch.tensor(value, dtype=torch.float64)


def tally(weights, terms):
    """Report of micro-batches given as (loss, count), and the weights they were given."""
    made = LossTally(weights)
    given_weights = [made.add(i, LossTerm(scalar(x), c)) for i, (x, c) in enumerate(terms)]
    return made.report(), given_weights


class Output:
    loss = scalar(2.0)


@pytest.mark.parametrize(
    "output", [{"loss": scalar(2.0)}, Output(), scalar(2.0), it.LossSum(scalar(2.0), 3)]
)
def test_loss_in_the_output(output):
    """Without a loss function the loss is the output's, wherever models put it."""
    assert float(loss_term(output, None, None).root) == 2


@pytest.mark.parametrize("output", [{"logits": scalar(1)}, torch.zeros(3), (scalar(1),), None])
def test_no_loss_in_the_output(output):
    """An output without a loss is refused, with its type and the ways to give one."""
    with pytest.raises(LossError, match=rf"no loss: .*\({type(output).__name__}\).*loss_fn"):
        loss_term(output, None, None)


def test_loss_function_comes_first():
    """A loss function is used even if the output carries a loss, and is given the micro-batch."""
    term = loss_term({"loss": scalar(1.0)}, scalar(5.0), lambda _, batch: batch * 2)
    assert float(term.root) == 10


def drawing_loss(output, batch):
    return F.mse_loss(F.dropout(output, 0.5), batch)


def plain_loss(output, batch):
    return F.mse_loss(output, batch)


@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1"])
def test_draws_of_a_loss_are_keyed(schedule):
    """A loss draws by micro-batch and step, whatever the generators' states are when it runs."""
    torch.manual_seed(0)
    model, batch = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)), torch.randn(4, 6)
    options = it.Options(threads_per_rank=1)
    found = []
    for seed in (1, 2):
        with it.Pipeline(
            model,
            example=batch,
            loss=drawing_loss,
            ranks=2,
            microbatches=2,
            schedule=schedule,
            options=options,
        ) as pipe:
            torch.manual_seed(seed)
            found.append(pipe.step(batch).microbatches)
    assert found[0] == found[1] != (F.mse_loss(model(batch), batch).detach().item(),) * 2


def test_losses_known_not_to_draw():
    """Only torch's own functions are: what else is called may draw some time."""
    assert draws_nothing(F.mse_loss)
    assert draws_nothing(it.WholeBatchLoss(F.cross_entropy))
    assert not draws_nothing(plain_loss)
    assert not draws_nothing(F.gumbel_softmax)
    assert not draws_nothing(nn.MSELoss())


@given(st.lists(st.tuples(st.integers(1, 9), st.floats(-5, 5)), min_size=1, max_size=9))
def test_rows_weigh(parts):
    """Means over rows add up to the mean over all rows."""
    rows = [count for count, _ in parts]
    report, weights = tally([r / sum(rows) for r in rows], [(x, None) for _, x in parts])
    expected = sum(r * x for r, x in parts) / sum(rows)
    assert report.value == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert report.correction == 1
    assert weights == [r / sum(rows) for r in rows]


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(-5, 5)), min_size=1, max_size=9))
def test_counts_weigh(parts):
    """Sums are divided by the count of all micro-batches, in whichever of them it is 0."""
    parts = [(count, x if count else 0.0) for count, x in parts]
    report, weights = tally([1.0] * len(parts), [(x, float(c)) for c, x in parts])
    total = sum(count for count, _ in parts)
    expected = sum(x for _, x in parts) / total if total else 0.0
    assert report.value == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert len(set(weights)) == 1
    if total:
        assert weights[0] * report.correction == pytest.approx(1 / total, rel=1e-12)
    else:
        assert report.correction == 0


def test_no_token_in_the_whole_batch():
    """A batch without anything to count has loss 0 and gradients 0, not NaN."""
    report, _ = tally([0.5, 0.5], [(0.0, 0.0), (0.0, 0.0)])
    assert (report.value, report.correction) == (0.0, 0.0)
    report.check_finite(stage=1, step=0)


def test_a_mean_over_nothing_does_not_count():
    """The NaN that a mean over nothing is does not reach the loss if the weight is 0."""
    report, _ = tally([1.0, 0.0], [(3.0, None), (math.nan, None)])
    assert report.value == 3
    report.check_finite(stage=1, step=0)


def test_first_loss_that_is_not_finite_is_named():
    """Of several micro-batches the first is named, with its stage, step and value."""
    report = LossReport(math.nan, (1.0, math.inf, math.nan), 1.0)
    with pytest.raises(NonFiniteLossError, match="loss is inf at stage 3 micro-batch 1 of step 7"):
        report.check_finite(stage=3, step=7)


@pytest.mark.parametrize(
    ("values", "expected"),
    [((1e308, 1e308), math.inf), ((-1e308, -1e308), -math.inf), ((math.inf, -math.inf), math.nan)],
)
def test_sum_beyond_all_floats(values, expected):
    """Losses whose sum no float holds make the loss that one process would see, not an error."""
    tally = LossTally([0.5, 0.5])
    for index, value in enumerate(values):
        tally.add(index, LossTerm(scalar(value), 1.0))
    assert repr(tally.report().value) == repr(expected)


@given(st.lists(st.tuples(st.floats(), st.floats(0, 9)), min_size=2, max_size=5), st.booleans())
def test_what_ranks_tell_each_other(terms, is_sum):
    """What several ranks know of a step makes the report of one that knows all, to the bit."""
    weights = [1 / len(terms)] * len(terms)
    counted = [(x, c if is_sum else None) for x, c in terms]
    known = [LossTerm(scalar(x), c, {"twice": LossTerm(scalar(x), c)}) for x, c in counted]
    one, some, others, reader = (LossTally(weights, foretold=2.0) for _ in range(4))
    for index, loss in enumerate(known):
        one.add(index, loss)
        (some if index % 2 else others).add(index, loss)
    reader.learn(some.told())
    reader.learn(others.told())
    assert repr(reader.report()) == repr(one.report())


def test_a_report_is_of_the_numbers_that_were_being_read():
    """While a loss is under way from a GPU, whoever reports waits for that."""
    tally = LossTally([1.0])
    tally.add(0, LossTerm(scalar(1.0), None))
    tally._reading = lambda: tally._terms.update({0: LossTerm(scalar(2.0), None)})
    assert tally.report().value == 2.0


def test_gradient_seed_has_the_shape_of_the_loss():
    """A loss of one element in some dims is given a gradient of its own shape."""
    seed = gradient_seed(LossTerm(torch.zeros(1, 1), None), 0.25)
    assert torch.equal(seed, torch.full((1, 1), 0.25))


def test_step_loss_is_a_number():
    """It formats, compares and converts as the number it is."""
    loss = StepLoss(LossReport(1.25, (1.0, 1.5), 1.0))
    assert float(loss) == loss.item() == 1.25
    assert f"{loss:.1f} {loss}" == "1.2 1.25"
    assert repr(loss) == "StepLoss(1.25)"
    assert loss == 1.25
    assert loss == StepLoss(LossReport(1.25, (), 1.0))
    assert loss != "1.25"
    assert 1 < loss <= 1.25
    assert 2 > loss >= 1
    assert loss.microbatches == (1.0, 1.5)
    assert {loss: 1}[loss] == 1


def told_by(index, term):
    """What a rank says that has taken in one micro-batch."""
    tally = LossTally([0.5, 0.5], foretold=2.0)
    tally.add(index, term)
    return tally.told()


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (LossTerm(scalar(1.0), None), LossTerm(scalar(2.0), 3.0), "micro-batch 1 is a LossSum"),
        (
            LossTerm(scalar(1.0), None, {"x": LossTerm(scalar(1.0), None)}),
            LossTerm(scalar(1.0), None, {"y": LossTerm(scalar(1.0), None)}),
            "the metrics of micro-batch 1 are y",
        ),
        (
            LossTerm(scalar(1.0), None),
            LossTerm(scalar(1.0), None, {"y": LossTerm(scalar(1.0), None)}),
            "the metrics of micro-batch 1 are y",
        ),
    ],
)
def test_ranks_tell_the_same_kinds(first, second, message):
    """Losses and metrics of another rank are of the same kinds as here, or refused as here."""
    reader = LossTally([0.5, 0.5])
    reader.learn(told_by(0, first))
    with pytest.raises(LossError, match=message):
        reader.learn(told_by(1, second))
