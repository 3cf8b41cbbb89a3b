"""Draws are keyed by what they are for: seed, step, micro-batch, place in the model, call."""

import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import intandem as it
from harness import pipeline
from intandem.recorder import Site, bind_by_signature
from intandem.runtime.randomness import KeyedRandom, default_generators_seeded, draw_key
from intandem.testing import keyed_randomness
from models import RANDOM, SAMPLES, Sample


def test_everything_counts():
    """Each part of the key changes it; the same parts give the same key on every machine."""
    site = Site("blocks.0", 0)
    keys = [
        draw_key(0, 0, 0, site),
        draw_key(1, 0, 0, site),
        draw_key(0, 1, 0, site),
        draw_key(0, 0, 1, site),
        draw_key(0, 0, 0, Site("blocks.1", 0)),
        draw_key(0, 0, 0, Site("blocks.0", 1)),
    ]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 2**63 for key in keys)
    assert keys[0] == draw_key(0, 0, 0, Site("blocks.0", 0, recomputed=True))
    assert draw_key(0, 0, 0, site) == 2239998621192358228


X = torch.linspace(-1, 1, 24).reshape(4, 6)
FUNCTIONS = {
    "dropout": lambda: F.dropout(X, 0.3),
    "dropout of all": lambda: F.dropout(X, 1.0),
    "dropout in place": lambda: F.dropout(X.clone(), 0.3, inplace=True),
    "alpha dropout": lambda: F.alpha_dropout(X, 0.3),
    "feature dropout": lambda: F.dropout2d(X.reshape(1, 4, 2, 3), 0.3),
    "attention": lambda: F.scaled_dot_product_attention(X, X, X, dropout_p=0.3),
    "bernoulli": lambda: torch.bernoulli(X.abs()),
    "rand": lambda: torch.rand(3),
    "randn_like": lambda: torch.randn_like(X),
    "randint": lambda: torch.randint(9, (5,)),
    "randperm": lambda: torch.randperm(9),
    "normal_": lambda: X.clone().normal_(),
    "multinomial": lambda: torch.multinomial(X.abs(), 2),
    "gumbel": lambda: F.gumbel_softmax(X),
    "rrelu": lambda: F.rrelu(X, training=True),
    "several": lambda: (F.dropout(X, 0.5), torch.rand(2), torch.randn_like(X)),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_draws_are_those_of_a_seeded_generator(function):
    """A keyed draw is what the default generator gives when seeded with the key, and leaves it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(77)
        expected = function()
    before = torch.get_rng_state()
    with KeyedRandom(77):
        found = function()
    assert torch.equal(before, torch.get_rng_state())
    with default_generators_seeded(77):
        seeded = function()
    assert torch.equal(before, torch.get_rng_state())
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(seeded, expected, rtol=0, atol=0)


def test_threads_do_not_share_draws():
    """Many threads that draw at once, with and without a generator of their own, do not mix."""
    expected = {}
    for key in range(4):
        with KeyedRandom(key):
            expected[key] = [F.alpha_dropout(X, 0.5), F.dropout(X, 0.5)]
    wrong = []

    def work(key):
        for _ in range(100):
            with KeyedRandom(key):
                found = [F.alpha_dropout(X, 0.5), F.dropout(X, 0.5)]
            if not all(map(torch.equal, found, expected[key])):
                wrong.append(key)

    threads = [threading.Thread(target=work, args=(key,)) for key in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


class Same(nn.Module):
    """Random noise is all that distinguishes its rows."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Dropout()) for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def first_output(output, batch):
    del batch
    return output.square().mean()


def test_micro_batches_and_steps_draw_apart():
    """Equal micro-batches and steps get other draws; another seed gets others again."""
    torch.manual_seed(0)
    sample = Sample(Same(), torch.ones(4, 6), first_output)
    losses = []
    for seed in (0, 1):
        options = it.Options(seed=seed, threads_per_rank=1)
        with pipeline(sample, ranks=2, microbatches=4, options=options) as pipe:
            for _ in range(2):
                losses += pipe.step(sample.batch).microbatches
    assert len(set(losses)) == 16


@pytest.mark.parametrize("name", sorted(RANDOM))
def test_random_samples_draw(name):
    """Samples that are entered as random have calls that draw, each of a key of its own."""
    model, batch, loss = SAMPLES[name]()
    bind = bind_by_signature(model, loss_is_separate=loss is not None)
    calls = it.capture(model, batch, bind=bind).calls
    sites = [call.site for call in calls if call.site is not None]
    assert sites or name == "noisy_loss"
    assert len({(site.name, site.call) for site in sites}) == len(sites)


def test_keyed_randomness_leaves_the_random_state():
    """The plain model gets the keyed draws once, and the process's state is put back."""
    model, batch, _ = SAMPLES["dropout_in_glue"]()
    before = torch.get_rng_state()
    outputs = []
    for step, microbatch in ((0, 0), (0, 0), (0, 1), (1, 0)):
        with keyed_randomness(model, step=step, microbatch=microbatch):
            outputs.append(model(batch[0]))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], outputs[3])
