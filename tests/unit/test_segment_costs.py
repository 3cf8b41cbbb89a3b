"""What is measured of a segment goes to the action that takes the time."""

import torch
from torch import nn

import intandem as it
from intandem.pipeline.stages import StagePlan
from intandem.profiler import segments
from intandem.recorder import bind_by_signature
from intandem.recorder.cut import segments as find_segments
from intandem.runtime import backward
from intandem.runtime.losses import loss_term
from intandem.runtime.weights import Weights


class Time:
    """A clock that moves when it is told to."""

    def __init__(self):
        self.now_s = 0.0

    def taking(self, seconds, function):
        def call(*args, **kwargs):
            self.now_s += seconds
            return function(*args, **kwargs)

        return call


def test_forward_inputs_and_weights_are_told_apart(monkeypatch):
    time = Time()
    monkeypatch.setattr(segments.time, "perf_counter", lambda: time.now_s)
    for name, seconds in (("backward_inputs", 3.0), ("backward_weights", 5.0)):
        monkeypatch.setattr(backward, name, time.taking(seconds, getattr(backward, name)))
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    model[0].register_forward_hook(time.taking(1.0, lambda *_: None))
    x = torch.randn(3, 4)
    graph = it.capture(model, x, bind=bind_by_signature(model, loss_is_separate=True))
    found = find_segments(graph)
    costs = segments.measure_segments(
        graph, found, Weights(model, graph), [x], lambda y: loss_term(y, x, lambda y, _: y.sum())
    )
    assert costs == (segments.SegmentCost(1, 3, 5, 20), segments.SegmentCost(0, 3, 5, 10))
    plan = StagePlan((0, 1), costs)
    assert StagePlan.decode(plan.encode()) == plan
    assert [plan.num_waiting(stage) for stage in (0, 1)] == [20, 10]
    model_costs = plan.cost_model()
    assert model_costs.forward_s == (1, 0)
    assert model_costs.backward_input_s == (3, 3)
    assert model_costs.backward_weight_s == (5, 5)
    assert model_costs.backward_s == (8, 8)
    assert all(parameter.grad is None for parameter in model.parameters())
