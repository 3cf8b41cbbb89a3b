"""What tests of equality share: plain runs of the samples, and pipelines with repeatable cuts."""

import copy
import functools
import os
import random
from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import intandem as it
from intandem.equality import Splitting, numbers_of, one_process
from intandem.pipeline import agreed_plan
from intandem.profiler.segments import SegmentCost
from intandem.recorder import bind_by_signature
from intandem.recorder.cut import segments
from models import ROWS, SAMPLES

TOLERANCE = 1e-12


@contextmanager
def repeatable_cuts(seed=0):
    """Cut by costs drawn at random from ``seed`` instead of measured ones."""

    def costs(graph, found, *rest):
        del graph, rest
        rng = random.Random(seed)
        drawn = [(rng.uniform(1, 3), rng.uniform(0.5, 1.5)) for _ in found]
        return tuple(SegmentCost(forward_s, half_s, half_s) for forward_s, half_s in drawn)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agreed_plan, "measure_segments", costs)
        yield


@functools.cache
def plain(name, microbatches, rows=ROWS):
    """Loss, gradients and buffers of a sample in plain PyTorch."""
    model, batch, loss = SAMPLES[name](rows)
    return one_process(model, batch, loss, Splitting(microbatches))


@functools.cache
def max_stages(name):
    """How many stages a sample can be cut into."""
    model, batch, loss = SAMPLES[name]()
    bind = bind_by_signature(model, loss_is_separate=loss is not None)
    return len(segments(it.capture(model, batch, bind=bind)))


@contextmanager
def pipeline(sample, **kwargs):
    """A Pipeline of a sample, its example the sample's batch. Torch uses one thread per rank.

    With OVER_GLOO in the environment, processes share no memory.
    """
    usual = it.Options(threads_per_rank=1, shared_memory="OVER_GLOO" not in os.environ)
    options = kwargs.pop("options", usual)
    example = kwargs.pop("example", sample.batch)
    with it.Pipeline(
        sample.model, example=example, loss=sample.loss, options=options, **kwargs
    ) as pipe:
        yield pipe


def in_tandem(sample, **kwargs):
    """Loss, gradients and buffers of a sample after one step of a pipeline."""
    with pipeline(sample, **kwargs) as pipe:
        loss = float(pipe.step(sample.batch))
    return numbers_of(sample.model, loss)


def numbers_of_step(sample, **kwargs):
    """The same, and the step's timeline."""
    with pipeline(sample, **kwargs) as pipe:
        loss = float(pipe.step(sample.batch))
        return numbers_of(sample.model, loss), pipe.timeline()


def gradients(model):
    """Copies of gradients by name, in the host's memory; None where there is none."""
    return {
        name: None if p.grad is None else p.grad.detach().cpu().clone()
        for name, p in model.named_parameters()
    }


def relative_error(found, expected):
    """|found - expected| / max(|expected|, 1e-3 |all expected|), of the worst name."""
    norms = {n: 0.0 if g is None else float(g.double().norm()) for n, g in expected.items()}
    floor = 1e-3 * sum(norm**2 for norm in norms.values()) ** 0.5
    worst = 0.0
    for name, gradient in expected.items():
        assert (gradient is None) == (found[name] is None), name
        if gradient is not None:
            difference = float((found[name].cpu().double() - gradient.cpu().double()).norm())
            worst = max(worst, difference / max(norms[name], floor, 1e-300))
    return worst


def same_bits(found, expected):
    """Names of tensors that differ in any bit."""
    assert found.keys() == expected.keys()
    return [
        name
        for name, tensor in expected.items()
        if (tensor is None) != (found[name] is None)
        or (tensor is not None and not torch.equal(tensor.cpu(), found[name].cpu()))
    ]


def twin(sample):
    """A copy of a sample that shares nothing with it."""
    return copy.deepcopy(sample)


class Counting(nn.Module):
    """A linear layer that counts its forwards, of which nothing that it holds knows."""

    def __init__(self, number):
        super().__init__()
        self.linear, self.number = nn.Linear(4, 4), number

    def forward(self, x):
        COUNTS[self.number] += 1
        return self.linear(x).tanh()


COUNTS = Counter()
