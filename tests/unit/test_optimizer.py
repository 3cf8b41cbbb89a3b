"""Ranks that step their own parameters, one step after another, without waiting for each other."""

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import intandem as it
from harness import TOLERANCE
from intandem.errors import ActionError, NonFiniteLossError, PeerFailureError, RunError
from intandem.runtime import backward
from intandem.runtime.loss_report import PromisedLoss, StepLoss

OPTIONS = it.Options(threads_per_rank=1)


def model_of(num_blocks=4):
    torch.manual_seed(0)
    blocks = (nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(num_blocks))
    return nn.Sequential(*blocks).double()


def batches(count, rows=8):
    torch.manual_seed(1)
    return [torch.randn(rows, 4, dtype=torch.float64) for _ in range(count)]


def pipeline(model, **options):
    given = {"ranks": 2, "microbatches": 4, "options": OPTIONS, "loss": F.mse_loss}
    return it.Pipeline(model, example=batches(1)[0], **{**given, **options})


def adam(parameters):
    """Two groups, so that options are told apart."""
    wide = [p for p in parameters if p.dim() > 1]
    rest = [p for p in parameters if p.dim() == 1]
    return torch.optim.AdamW([{"params": wide}, {"params": rest, "lr": 1e-3}], lr=1e-2)


def same(ours, theirs):
    return all(
        (a - b).norm() <= TOLERANCE * b.norm()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)
    )


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved", "zb-h1", "zb-v"])
def test_trains_as_one_process_does(schedule):
    """With a learning rate that changes while ranks are still at the step before."""
    plain, ours = model_of(), model_of()
    optimizer = adam(list(plain.parameters()))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    expected, found = [], []
    for batch in batches(6):
        optimizer.zero_grad()
        loss = F.mse_loss(plain(batch), batch)
        loss.backward()
        optimizer.step()
        scheduler.step()
        expected.append(loss.item())
    with pipeline(ours, schedule=schedule) as pipe:
        optimizer = pipe.optimizer(adam)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        for batch in batches(6):
            optimizer.zero_grad()
            found.append(pipe.step(batch))
            optimizer.step()
            scheduler.step()
    assert all(type(loss) is PromisedLoss for loss in found)
    assert [loss.item() for loss in found] == pytest.approx(expected, rel=TOLERANCE)
    assert same(ours, plain)


class Gate(nn.Linear):
    """Tells when its forward is run for the fifth time since it was given somebody to tell."""

    seen, num_calls = None, 0

    def forward(self, x):
        if self.seen is not None:
            self.num_calls += 1
            if self.num_calls == 5:
                self.seen.set()
        return super().forward(x)


def test_a_rank_goes_on_while_others_are_at_the_step_before(monkeypatch):
    """Rank 1 ends its last weight gradient when rank 0 has begun the next step."""
    model = nn.Sequential(Gate(4, 4), *(nn.Linear(4, 4) for _ in range(3))).double()
    gate, seen, calls = model[0], threading.Event(), []
    add_up = backward.backward_weights

    def held(pending):
        if threading.current_thread().name == "intandem rank 1":
            calls.append(None)
            if len(calls) == 4:
                calls.append(seen.wait(20))
        add_up(pending)

    with pipeline(model, schedule="zb-h1") as pipe:
        optimizer = pipe.optimizer(adam)
        gate.seen = seen
        monkeypatch.setattr(backward, "backward_weights", held)
        for batch in batches(2):
            pipe.step(batch)
            optimizer.step()
        pipe.timeline()
    assert calls[4] is True


def test_steps_ahead_are_few(monkeypatch):
    """The third step waits for the first."""
    begun, ended = [], []
    with pipeline(model_of()) as pipe:
        optimizer = pipe.optimizer(adam)
        passes = pipe._passes
        begin, complete = passes.begin, passes.complete
        monkeypatch.setattr(passes, "begin", lambda b: begun.append(len(ended)) or begin(b))
        monkeypatch.setattr(passes, "complete", lambda s: (complete(s), ended.append(s))[0])
        for batch in batches(5):
            pipe.step(batch)
            optimizer.step()
    assert begun == [0, 0, 1, 2, 3]
    assert len(ended) == 5


def test_what_is_asked_of_the_pipeline_is_as_after_the_step():
    """Gradients, their norm, the state and evaluation wait for the ranks."""
    plain, ours = model_of(), model_of()
    (batch,) = batches(1)
    F.mse_loss(plain(batch), batch).backward()
    norm = nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
    with pipeline(ours) as pipe:
        optimizer = pipe.optimizer(lambda parameters: torch.optim.SGD(parameters, lr=0.1))
        pipe.step(batch)
        assert pipe.clip_grad_norm_(0.1) == pytest.approx(norm.item(), rel=TOLERANCE)
        for parameter, expected in zip(pipe.parameters(), plain.parameters(), strict=True):
            assert torch.allclose(parameter.grad, expected.grad, rtol=TOLERANCE, atol=0)
        optimizer.step()
        torch.optim.SGD(plain.parameters(), lr=0.1).step()
        state = pipe.state_dict()
        assert all(torch.allclose(state[k], v, rtol=1e-12) for k, v in plain.state_dict().items())
        pipe.step(batch)
        optimizer.step()
        assert float(pipe.evaluate(batch)) == pytest.approx(
            F.mse_loss(ours(batch), batch).item(), rel=TOLERANCE
        )


def test_new_shapes_wait_until_they_can_be_recorded():
    plain, ours = model_of(), model_of()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    every = [batch for rows in (8, 5, 8, 7) for batch in batches(2, rows)]
    for batch in every:
        optimizer.zero_grad()
        F.mse_loss(plain(batch), batch).backward()
        optimizer.step()
    with pipeline(ours) as pipe:
        optimizer = pipe.optimizer(lambda parameters: torch.optim.SGD(parameters, lr=0.1))
        for batch in every:
            optimizer.zero_grad()
            pipe.step(batch)
            optimizer.step()
    assert same(ours, plain)


def test_a_loss_that_is_no_number_changes_nothing():
    """It is raised when it is read, or by the next call; training can go on."""
    ours = model_of()
    good, bad = batches(2)
    bad[5] = torch.nan
    with pipeline(ours) as pipe:
        optimizer = pipe.optimizer(lambda parameters: torch.optim.SGD(parameters, lr=0.1))
        before = copy.deepcopy(ours.state_dict())
        loss = pipe.step(bad)
        optimizer.step()
        for _ in range(2):
            with pytest.raises(NonFiniteLossError, match="micro-batch 2"):
                float(loss)
        pipe.step(bad)
        optimizer.step()
        with pytest.raises(NonFiniteLossError):
            pipe.state_dict()
        after = pipe.state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items())
        optimizer.zero_grad()
        assert float(pipe.step(good)) > 0


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_loss_that_is_no_number_spoils_what_it_is_added_to(order):
    """Two steps are added up; nothing is changed by their sum."""
    ours, every = model_of(), batches(2)
    every[1][5] = torch.nan
    with pipeline(ours) as pipe:
        optimizer = pipe.optimizer(lambda parameters: torch.optim.SGD(parameters, lr=0.1))
        before = copy.deepcopy(ours.state_dict())
        for index in order:
            pipe.step(every[index])
        optimizer.step()
        with pytest.raises(NonFiniteLossError):
            pipe.state_dict()
        assert all(torch.equal(pipe.state_dict()[name], value) for name, value in before.items())


class Failing(nn.Linear):
    fails = False

    def forward(self, x):
        if self.fails:
            msg = "boom"
            raise ValueError(msg)
        return super().forward(x)


def test_what_a_rank_raises_is_raised_by_a_later_call():
    model = nn.Sequential(*(Failing(4, 4) for _ in range(4))).double()
    (batch,) = batches(1)
    with pipeline(model) as pipe:
        optimizer = pipe.optimizer(adam)
        pipe.step(batch)
        optimizer.step()
        pipe.timeline()
        model[2].fails = True
        loss = pipe.step(batch)
        with pytest.raises(ActionError, match="boom"):
            loss.item()
        with pytest.raises(RunError):
            pipe.step(batch)


def test_an_optimizer_that_raises_ends_the_run():
    """Its error comes as itself, or as that of the rank that another one waited for."""

    def broken(parameters):
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        optimizer.register_step_pre_hook(lambda *_: 1 / 0)
        return optimizer

    (batch,) = batches(1)
    with pipeline(model_of()) as pipe:
        optimizer = pipe.optimizer(broken)
        pipe.step(batch)
        optimizer.step()
        with pytest.raises((ZeroDivisionError, PeerFailureError)) as caught:
            pipe.state_dict()
    assert isinstance(caught.value.__cause__ or caught.value, ZeroDivisionError)


def test_state_comes_back():
    """Where the same stages are on the same ranks."""
    first, second = model_of(), model_of()
    before, after = batches(2), batches(4)[2:]

    def train(pipe, optimizer, every):
        for batch in every:
            optimizer.zero_grad()
            pipe.step(batch)
            optimizer.step()

    with pipeline(first, split_points=["2"]) as pipe:
        optimizer = pipe.optimizer(adam)
        train(pipe, optimizer, before)
        weights, state = copy.deepcopy((pipe.state_dict(), optimizer.state_dict()))
        train(pipe, optimizer, after)
    with pipeline(second, split_points=["2"]) as pipe:
        optimizer = pipe.optimizer(adam)
        pipe.load_state_dict(weights)
        with pytest.raises(ValueError, match="of ranks 0; this process has ranks 0, 1"):
            optimizer.load_state_dict({"0": state["0"]})
        optimizer.load_state_dict(state)
        train(pipe, optimizer, after)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = (nn.Linear(4, 4) for _ in range(3))
        self.last.weight = self.first.weight

    def forward(self, x):
        return self.last(self.middle(self.first(x)).tanh())


def test_parameters_that_ranks_share_are_waited_for():
    torch.manual_seed(0)
    ours = Tied().double()
    plain = copy.deepcopy(ours)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for batch in batches(3):
        optimizer.zero_grad()
        F.mse_loss(plain(batch), batch).backward()
        optimizer.step()
    with pipeline(ours, split_points=["middle"]) as pipe:
        optimizer = pipe.optimizer(lambda parameters: torch.optim.SGD(parameters, lr=0.1))
        for batch in batches(3):
            optimizer.zero_grad()
            assert type(pipe.step(batch)) is StepLoss
            optimizer.step()
    assert same(ours, plain)


def test_a_promised_loss_is_used_like_a_number():
    (batch,) = batches(1)
    with pipeline(model_of()) as pipe:
        pipe.optimizer(adam)
        loss = pipe.step(batch)
        value = loss.item()
    assert f"{loss:.3f}" == f"{value:.3f}"
    assert str(loss) == str(value)
    assert repr(loss) == f"StepLoss({value!r})"
    assert (loss + 1, 1 + loss, loss - 1, 1 - loss) == (value + 1, 1 + value, value - 1, 1 - value)
    assert (2 * loss, loss * 2, loss / 2, 2 / loss) == (2 * value, value * 2, value / 2, 2 / value)
    assert (-loss, abs(loss), round(loss, 2)) == (-value, abs(value), round(value, 2))
    assert loss < value + 1 <= loss + 1
    assert loss > value - 1 >= loss - 1
    assert loss <= value
    assert loss >= value
    assert loss == value
    assert {loss: 1}[value] == 1
    assert bool(loss)
    assert len(loss.microbatches) == 4
    assert loss.metrics == {}
    with pytest.raises(it.errors.LossError, match="already run backward"):
        loss.backward()


def test_refusals():
    (batch,) = batches(1)
    with pipeline(model_of()) as pipe:
        with pytest.raises(TypeError, match=r"the factory returns is a list; expected a torch"):
            pipe.optimizer(list)
        optimizer = pipe.optimizer(adam)
        with pytest.raises(RunError, match="has an optimizer already"):
            pipe.optimizer(adam)
        with pytest.raises(RunError, match="takes no closure"):
            optimizer.step(lambda: pipe.step(batch))
        with pytest.raises(RunError, match="make the optimizer anew"):
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
