"""What a recording holds: blocks kept whole, glue call by call, guards, and nothing changed."""

import copy

import pytest
import torch
from torch import nn

import intandem as it
from harness import max_stages, same_bits
from intandem.recorder import CallKind, bind_by_signature
from intandem.recorder.cut import cut, links_of, segments
from models import SAMPLES


def record(name):
    """Recording of a sample."""
    model, batch, loss = SAMPLES[name]()
    bind = bind_by_signature(model, loss_is_separate=loss is not None)
    return it.capture(model, batch, bind=bind)


def blocks(graph):
    return [call.name for call in graph.calls if call.kind is CallKind.BLOCK]


def test_blocks_and_glue():
    """Children of containers and childless modules with parameters are blocks; the rest is glue."""
    graph = record("gpt_tied")
    names = ["tokens", "positions", "blocks.0", "blocks.1", "blocks.2", "norm", "head"]
    assert blocks(graph) == names
    glue = [call.name for call in graph.calls if call.kind is CallKind.GLUE]
    assert glue == ["arange", "add"]
    shown = str(graph)
    assert shown.startswith("7 blocks, 2 glue calls")
    assert "blocks.1" in shown


@pytest.mark.parametrize("name", SAMPLES)
def test_capture_changes_nothing(name):
    """Capture leaves parameters, buffers, gradients, modes and the random state as they were."""
    model, batch, loss = SAMPLES[name]()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    kept = copy.deepcopy(batch)
    it.capture(model, batch, bind=bind_by_signature(model, loss_is_separate=loss is not None))
    assert same_bits(model.state_dict(), before) == []
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(p.grad is not None for p in model.parameters())
    torch.testing.assert_close(batch, kept, rtol=0, atol=0)


@pytest.mark.parametrize("name", SAMPLES)
def test_every_call_is_on_one_stage(name):
    """However a model is cut, each call with parameters is on one stage, and values connect."""
    graph = record(name)
    found = segments(graph)
    assert found[0].start == 0
    assert found[-1].end == len(graph.calls)
    for num_stages in range(1, min(4, len(found)) + 1):
        starts = [part.start for part in found[:num_stages]]
        cuts = cut(graph, starts)
        for index, call in enumerate(graph.calls):
            on = [part.stage for part in cuts if index in part.calls]
            made = [v for v in call.outputs if v is not None]
            derived = bool(made) and all(graph.values[v].derived for v in made)
            assert len(on) == 1 or derived, call.name
        for part in cuts:
            for source, values in part.received.items():
                assert cuts[source].sent[part.stage] == values
            for source, values in part.gradients_received.items():
                assert cuts[source].gradients_sent[part.stage] == values
        assert all(source < target for source, target in links_of(cuts).activations)
        assert all(source > target for source, target in links_of(cuts).gradients)


def test_skips_go_straight():
    """A skip goes from the stage that makes it to the one that reads it, past those between."""
    graph = record("unet")
    found = segments(graph)
    links = links_of(cut(graph, [part.start for part in found]))
    # The tanh after a block is cheapest to cut before, so it is the next stage's.
    assert {(1, 5), (2, 4), (2, 3)} <= set(links.activations)
    assert (5, 1) in links.gradients


def test_what_the_batch_decides_is_not_sent():
    """Masks and positions are made again on each stage that reads them."""
    graph = record("guarded_mask")
    cuts = cut(graph, [part.start for part in segments(graph)])
    for part in cuts[:-1]:
        for values in part.sent.values():
            assert not any(graph.values[value].derived for value in values)
    assert all(part.batch for part in cuts)


def test_tied_and_shared_weights():
    """A weight used twice is listed by each of its calls under its first name."""
    graph = record("gpt_tied")
    users = [call.name for call in graph.calls if "tokens.weight" in call.parameters]
    assert users == ["tokens", "head"]
    expected = [name for i in range(3) for name in (f"blocks.{i}", "shared.0", "shared.1")]
    assert blocks(record("shared_block")) == expected


def test_unused_parameters_are_listed():
    """Parameters that no call uses are known."""
    assert record("parameter_in_glue").unused == ("unused",)


def test_guards():
    """A tensor that becomes a Python value is a guard, with its outcome and line."""
    (guard,) = [g for g in record("guarded_mask").guards if g.outcome is False]
    assert "models.py:" in guard.location


def test_updated_buffers():
    """Buffers that a call updates are listed by it, others are not."""
    graph = record("batch_norm")
    first = next(call for call in graph.calls if call.name == "features.0.1")
    assert first.updates == (
        "features.0.1.num_batches_tracked",
        "features.0.1.running_mean",
        "features.0.1.running_var",
    )
    written = {name for call in record("buffers_in_glue").calls for name in call.updates}
    assert written == {"mean"}


def test_opaque_functions():
    """An ``autograd.Function`` between blocks is one call; its inside is not recorded."""
    calls = record("custom_function").calls
    assert [c.name for c in calls if c.kind is CallKind.OPAQUE] == ["Double"] * 4


def test_number_of_parts():
    """A model can be cut before each block with parameters, unless that would change numbers."""
    assert max_stages("mlp") == 5
    assert max_stages("gpt_tied") == 7
    assert max_stages("unet") == 6


class Evaluates(nn.Module):
    """Draws and updates in training mode alone."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(nn.Linear(6, 6), nn.Dropout(), nn.BatchNorm1d(6))

    def forward(self, x):
        return self.blocks(x)


def test_modes():
    """A recording in evaluation mode has no draws and no updates."""
    model = Evaluates()
    training = it.capture(model, torch.randn(4, 6)).calls
    evaluation = it.capture(model.eval(), torch.randn(4, 6)).calls
    assert any(c.site for c in training)
    assert any(c.updates for c in training)
    assert not any(c.site or c.updates for c in evaluation)


class Counted(nn.Module):
    """Draws between blocks by a function that is not known to, and seeds."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = self.first(x).abs().clamp(max=1)
        x = torch.binomial(torch.full_like(x, 3.0), x.detach()) + x
        torch.manual_seed(3)
        return self.last(x.relu())


def test_draws_of_functions_that_are_not_known_to_draw():
    """Such a call draws where it stands, each time it is recorded; seeding is nobody's draw."""
    model, x = Counted(), torch.rand(2, 4)
    for _ in range(2):
        before = torch.get_rng_state()
        graph = it.capture(model, x)
        assert [call.name for call in graph.calls if call.site is not None] == ["binomial"]
        assert torch.equal(before, torch.get_rng_state())
