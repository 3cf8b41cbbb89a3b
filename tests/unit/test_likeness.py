"""One cost for blocks that are alike."""

import pytest
import torch
from torch import nn

import intandem as it
from intandem.pipeline import agreed_plan
from intandem.profiler.likeness import pooled
from intandem.profiler.segments import SegmentCost


def cost(*seconds, flops=None):
    return SegmentCost(*seconds, num_waiting=4, forward_flops=flops)


def test_alike_segments_have_the_medians_of_all():
    costs = [cost(1.0, 2.0, 3.1), cost(9.0, 9.0, 9.0), cost(1.2, 1.9, 3.0), cost(1.1, 2.1, 3.2)]
    usual = cost(1.1, 2.0, 3.1)
    assert pooled(costs, ["block", "head", "block", "block"]) == (usual, costs[1], usual, usual)


@pytest.mark.parametrize("seconds", [(2.6, 2.6, 2.6), (1.5, 1.5, 1.5)])
def test_what_takes_a_quarter_more_or_less_is_not_alike(seconds):
    """A module of the same shapes may do something else, longer or shorter."""
    costs = [cost(2.0, 2.0, 2.0), cost(2.0, 2.0, 2.0), cost(*seconds)]
    assert pooled(costs, ["block"] * 3) == tuple(costs)


def test_what_does_other_work_is_not_alike():
    costs = [cost(2.0, 2.0, 2.0, flops=100), cost(2.2, 2.2, 2.2, flops=110)]
    assert pooled(costs, ["block"] * 2) == tuple(costs)


class Residual(nn.Module):
    def __init__(self, widths):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(16, w), nn.Tanh(), nn.Linear(w, 16)) for w in widths
        )

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x


def planned(model, disturbed, monkeypatch):
    """Seconds of forwards that stages are cut by, where some took 1.6 of the others' second."""
    found, plan_of = {}, agreed_plan._plan

    def measured(graph, segments, *_):
        return tuple(
            SegmentCost(1.6 if s.name in disturbed else 1.0, 1.0, 1.0, num_waiting=1)
            for s in segments
        )

    def plan(subject, *rest):
        made = plan_of(subject, *rest)
        found.update(
            {s.name: c.forward_s for s, c in zip(subject.segments, made.costs, strict=True)}
        )
        return made

    monkeypatch.setattr(agreed_plan, "measure_segments", measured)
    monkeypatch.setattr(agreed_plan, "_plan", plan)
    batch = torch.randn(8, 16)
    it.Pipeline(model, example=batch, loss=lambda y, b: y.mean(), ranks=2, microbatches=2).close()
    return found


@pytest.mark.parametrize(
    ("disturbed", "is_alone"),
    [
        ("blocks.3.2", False),
        ("blocks.0.0", True),
        ("blocks.5.2", True),
        ("blocks.6.2", True),
        ("blocks.7.2", True),
    ],
    ids=["repeated", "first", "frozen", "wider", "last"],
)
def test_repeated_blocks_of_a_model_cost_the_same(disturbed, is_alone, monkeypatch):
    """But the first, which hands no gradient on, the last, whose cost contains the loss's."""
    model = Residual([16] * 6 + [32] + [16])
    model.blocks[5][2].requires_grad_(requires_grad=False)
    found = planned(model, {disturbed}, monkeypatch)
    assert found[disturbed] == (1.6 if is_alone else 1.0)
    assert set(found[name] for name in found if name != disturbed) == {1.0}


def test_disturbed_measurements_do_not_move_the_cut(monkeypatch):
    """Three of ten blocks in a row: by their own figures the first stage would be shorter."""
    names = {f"blocks.{index}.{part}" for index in range(2, 5) for part in (0, 2)}
    assert set(planned(Residual([16] * 10), names, monkeypatch).values()) == {1.0}
