"""Metrics and losses of the whole batch over Gloo: every rank reads one process's numbers."""

import copy

import torch
from processes import run_ranks
from torch import nn
from torch.nn import functional as F

import intandem as it
from harness import TOLERANCE, gradients, relative_error


class TwoTowers(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.text = (
            nn.Sequential(nn.Linear(d, 16), nn.GELU(), nn.Linear(16, 8)) for d in (12, 10)
        )
        self.temperature = nn.Parameter(torch.tensor(0.7))

    def forward(self, image, text):
        return self.image(image), self.text(text), self.temperature


def contrast(output, batch):
    image, text, scale = output
    logits, target = scale * image @ text.T, torch.arange(len(batch[0]))
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    return {"loss": loss, "mean": logits.mean()}


def contrastive():
    """Errors of loss, metric and own gradients, plain against two processes."""
    found = {}
    for recompute in ("none", "all"):
        torch.manual_seed(0)
        model, rows = TwoTowers().double(), 7
        batch = (torch.randn(rows, 12).double(), torch.randn(rows, 10).double())
        plain = copy.deepcopy(model)
        expected = contrast(plain(*batch), batch)
        expected["loss"].backward()
        with it.Pipeline(
            model, example=batch, loss=it.WholeBatchLoss(contrast), microbatches=3,
            recompute=recompute,
        ) as pipe:  # fmt: skip
            loss, evaluated = pipe.step(batch), pipe.evaluate(batch)
            held = dict(pipe.named_parameters())
        own = {name: p.grad for name, p in held.items()}
        theirs = {name: g for name, g in gradients(plain).items() if name in own}
        found[recompute] = {
            "loss": abs(loss - expected["loss"].item()) + abs(evaluated - expected["loss"].item()),
            "metric": abs(loss.metrics["mean"] - expected["mean"].item())
            + abs(evaluated.metrics["mean"] - expected["mean"].item()),
            "gradient": relative_error(own, theirs),
        }
    return found


def test_contrastive_loss(tmp_path):
    """The gradient of the whole batch, stage by stage, and its metrics on every rank."""
    for outcome in run_ranks(contrastive, 2, tmp_path, timeout_s=90):
        assert outcome.code == 0, outcome.output[-3000:]
        for errors in outcome.value.values():
            assert max(errors.values()) <= TOLERANCE, errors


def scaled():
    """Four steps with a scaler; in the second, rank 0 alone has an infinite gradient."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(6, 6) for _ in range(4)])
    x = torch.randn(8, 6)
    pipe = it.Pipeline(model, example=x, loss=lambda y, _: y.square().mean(), microbatches=4)
    scaler = pipe.grad_scaler(init_scale=1024.0)
    optimizer = torch.optim.AdamW(pipe.parameters(), lr=0.01)
    rank, found = torch.distributed.get_rank(), []
    for step in range(4):
        pipe.step(x)
        parameters = list(pipe.parameters())
        if step == 1 and rank == 0:
            parameters[0].grad[0] = torch.inf
        if step == 2:
            scaler.unscale_(optimizer)
            pipe.clip_grad_norm_(1.0)
        before = [parameter.detach().clone() for parameter in parameters]
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        moved = [not torch.equal(b, p) for b, p in zip(before, parameters, strict=True)]
        found.append([all(moved), any(moved), scaler.get_scale()])
    try:
        pipe.step(x)
        scaler.update(512.0 * (1 + rank))
        pipe.step(x)
        scaler.step(optimizer)
    except it.PipelineError as error:
        found.append(f"{type(error).__name__}: {error}")
    return found


def test_an_infinite_gradient_of_one_rank(tmp_path):
    """Both ranks skip the step, both halve the scale; both go on. Scales that differ are told."""
    first, second = run_ranks(scaled, 2, tmp_path, timeout_s=60)
    assert first.code == second.code == 0, first.output[-3000:]
    went, skipped = [True, True], [False, False]
    expected = [[*went, 1024.0], [*skipped, 512.0], [*went, 512.0], [*went, 512.0]]
    assert first.value[:4] == second.value[:4] == expected
    for outcome, (own, other) in ((first, (512.0, 1024.0)), (second, (1024.0, 512.0))):
        assert f"has a gradient scale of {own}, and rank" in outcome.value[4]
        assert f"of {other}; call update() alike" in outcome.value[4]
