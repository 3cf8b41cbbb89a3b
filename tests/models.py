"""Small models of many kinds, each with a batch and a loss: what a pipeline has to get right.

Each function of SAMPLES takes the number of rows and returns a Sample in float64, the same one each
time. A Sample unpacks to ``model, batch, loss``.
"""

import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from intandem import LossSum

sys.path.append(str(Path(__file__).parent.parent / "examples"))
from gpt import GPT

WIDTH = 6
ROWS = 7


class Sample(NamedTuple):
    """What ``check`` takes first."""

    model: nn.Module
    batch: Any
    loss: Any


SAMPLES = {}
"""Every kind of model, by name: a function of the number of rows."""

RANDOM = set()
"""Names of samples that draw random numbers."""


def sample(function=None, *, random=False):
    """Enter a function in SAMPLES: built from a fixed seed, in float64 and training mode."""
    if function is None:
        return lambda f: sample(f, random=random)

    def build(rows=ROWS):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(20)
            model, batch, loss = function(rows)
        return on_device(Sample(model.double().train(), batch, loss))

    name = function.__name__
    build.__name__ = name
    SAMPLES[name] = build
    if random:
        RANDOM.add(name)
    return build


def on_device(sample):
    """The same where a pipeline computes unless it is told otherwise."""
    if not torch.cuda.is_available():
        return sample
    moved = tree_map(lambda leaf: leaf.cuda() if torch.is_tensor(leaf) else leaf, sample.batch)
    return Sample(sample.model.cuda(), moved, sample.loss)


def numbers(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def regression(model, rows, width=WIDTH):
    """A Sample of a model from vectors to vectors; the loss is a mean over rows."""
    return Sample(model, (numbers(rows, width), numbers(rows, width)), row_mean)


def row_mean(output, batch):
    return F.mse_loss(output, batch[-1])


def language(model, rows, vocab=11, seq=5):
    """A Sample of a model from token numbers to logits."""
    ids = torch.randint(vocab, (rows, seq + 1))
    return Sample(model, (ids[:, :-1], ids[:, 1:]), next_token)


def next_token(logits, batch):
    return F.cross_entropy(logits.flatten(0, 1), batch[1].flatten())


# Plain stacks.


@sample
def mlp(rows):
    layers = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(5)]
    return regression(nn.Sequential(*layers), rows)


def _gpt(rows, **kwargs):
    model = GPT(vocab=11, seq=5, width=8, num_blocks=3, num_heads=2, **kwargs)
    return language(model, rows)


@sample
def gpt_tied(rows):
    return _gpt(rows, tied=True)


@sample
def gpt_untied(rows):
    return _gpt(rows, tied=False)


class Convolutions(nn.Module):
    """Convolutions with BatchNorm and ReLU in place, pooling, and a head."""

    def __init__(self, channels=3):
        super().__init__()
        self.features = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            )
            for _ in range(4)
        )
        self.head = nn.Linear(channels, 4)

    def forward(self, images):
        x = images
        for block in self.features:
            x = block(x)
        return self.head(x.mean((2, 3)))


@sample
def batch_norm(rows):
    return Sample(Convolutions(), (numbers(rows, 3, 4, 4), torch.randint(4, (rows,))), class_loss)


def class_loss(logits, batch):
    return F.cross_entropy(logits, batch[1])


class BatchNormOutside(nn.Module):
    """BatchNorm registered outside containers, used between blocks, with in-place glue after it."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH, momentum=None)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x):
        x = self.norm(torch.cat([self.first(x), x]))[: len(x)]
        for block in self.blocks:
            x = F.relu(block(x), inplace=True)
        return x


@sample
def batch_norm_cumulative(rows):
    return regression(BatchNormOutside(), rows)


class UNet(nn.Module):
    """A way down, a way up, and a skip between each pair of levels."""

    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList(nn.Conv1d(2, 2, 3, padding=1) for _ in range(3))
        self.up = nn.ModuleList(nn.Conv1d(4, 2, 3, padding=1) for _ in range(3))

    def forward(self, x):
        skips = []
        for block in self.down:
            x = torch.tanh(block(x))
            skips.append(x)
        for block in self.up:
            x = torch.tanh(block(torch.cat([x, skips.pop()], 1)))
        return x


@sample
def unet(rows):
    return Sample(UNet(), (numbers(rows, 2, 6), numbers(rows, 2, 6)), row_mean)


class FanOut(nn.Module):
    """A value that every later block reads, next to the output of the block before."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x):
        memory = torch.tanh(self.stem(x))
        x = memory
        for block in self.blocks:
            x = torch.sigmoid(block(x * memory)) + memory
        return x + memory.sum(-1, keepdim=True)


@sample
def fan_out(rows):
    return regression(FanOut(), rows)


class TwoTowers(nn.Module):
    """Two inputs, each with layers of its own, joined late."""

    def __init__(self):
        super().__init__()
        self.left = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.right = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
        self.join = nn.Bilinear(WIDTH, 3, WIDTH)

    def forward(self, left, right):
        for block in self.left:
            left = torch.tanh(block(left))
        for block in self.right:
            right = torch.tanh(block(right))
        return self.join(left, right)


@sample
def two_towers(rows):
    return Sample(TwoTowers(), (numbers(rows, WIDTH), numbers(rows, 3), numbers(rows, 6)), row_mean)


# Randomness.


@sample(random=True)
def dropout_in_blocks(rows):
    return _gpt(rows, tied=True, dropout=0.3)


class DropoutInGlue(nn.Module):
    """Random draws between blocks: dropout three ways, and noise."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.dropout = nn.Dropout(0.2)

    def forward(self, x):
        for block in self.blocks:
            x = x + F.dropout(torch.tanh(block(self.dropout(x))), 0.4, training=self.training)
        if self.training:
            x = x + 0.1 * torch.randn_like(x) * torch.rand(
                x.shape[-1], dtype=x.dtype, device=x.device
            )
        return x


@sample(random=True)
def dropout_in_glue(rows):
    return regression(DropoutInGlue(), rows)


class Attention(nn.Module):
    """Attention with dropout inside ``scaled_dot_product_attention``."""

    def __init__(self, dropout):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.dropout = dropout

    def forward(self, x):
        query, key, value = self.qkv(x).unsqueeze(1).chunk(3, -1)
        p = self.dropout if self.training else 0.0
        return x + F.scaled_dot_product_attention(query, key, value, dropout_p=p).squeeze(1)


class AttentionOutside(nn.Module):
    """The same between blocks as well."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Attention(0.3) for _ in range(3))
        self.last = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        p = 0.3 if self.training else 0.0
        x = x.unsqueeze(1)
        return self.last(F.scaled_dot_product_attention(x, x, x, dropout_p=p).squeeze(1))


def sequences(model, rows):
    return Sample(model, (numbers(rows, 4, WIDTH), numbers(rows, 4, WIDTH)), row_mean)


@sample(random=True)
def dropout_in_attention(rows):
    return sequences(AttentionOutside(), rows)


class MultiHead(nn.Module):
    """``nn.MultiheadAttention`` as a block and outside containers."""

    def __init__(self):
        super().__init__()
        self.first = nn.MultiheadAttention(WIDTH, 2, dropout=0.25, batch_first=True)
        self.blocks = nn.ModuleList(
            nn.MultiheadAttention(WIDTH, 2, dropout=0.25, batch_first=True) for _ in range(3)
        )

    def forward(self, x):
        for attention in (self.first, *self.blocks):
            x = x + attention(x, x, x, need_weights=False)[0]
        return x


@sample(random=True)
def multi_head_attention(rows):
    return sequences(MultiHead(), rows)


@sample(random=True)
def encoder_layers(rows):
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.2, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    return sequences(encoder, rows)


class Heads(nn.Module):
    """A loss that draws random numbers is in ``noisy_loss``."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


def noisy(output, batch):
    return F.mse_loss(F.dropout(output, 0.5), batch[1])


@sample(random=True)
def noisy_loss(rows):
    return regression(Heads(), rows)._replace(loss=noisy)


# Parameters used in unusual ways.


class Shared(nn.Module):
    """One block called three times, between others, and a block inside another called directly."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.shared = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())

    def forward(self, x):
        for block in self.blocks:
            x = self.shared(block(x))
        return x


@sample
def shared_block(rows):
    return regression(Shared(), rows)


class ParameterInGlue(nn.Module):
    """Parameters used between blocks, one of them twice."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(WIDTH))
        self.shift = nn.Parameter(torch.rand(WIDTH))
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.unused = nn.Parameter(torch.rand(3))

    def forward(self, x):
        x = x * self.scale
        for block in self.blocks:
            x = torch.tanh(block(x)) + self.shift
        return F.linear(x, torch.outer(self.scale, self.shift))


@sample
def parameter_in_glue(rows):
    return regression(ParameterInGlue(), rows)


class Frozen(nn.Module):
    """Some blocks train, others do not."""

    def __init__(self, trained):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in trained)
        for block, trains in zip(self.blocks, trained, strict=True):
            block.requires_grad_(trains)

    def forward(self, x):
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


@sample
def frozen_first(rows):
    return regression(Frozen([False, False, True, True]), rows)


@sample
def frozen_middle(rows):
    return regression(Frozen([True, False, False, True]), rows)


@sample
def frozen_last(rows):
    return regression(Frozen([True, True, False, False]), rows)


class BuffersInGlue(nn.Module):
    """A constant buffer, and one that glue writes to in every call."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.register_buffer("scale", torch.rand(WIDTH))
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, x):
        for index, block in enumerate(self.blocks):
            x = torch.tanh(block(x * self.scale))
            if index == 1 and self.training:
                self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
                x = x - self.mean
        return x


@sample
def buffers_in_glue(rows):
    return regression(BuffersInGlue(), rows)


class Counting(nn.Module):
    """A block that counts its calls, and whose result depends on the count."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        if self.training:
            self.calls += 1
        return torch.tanh(self.linear(x)) / (1 + self.calls)


@sample
def counting_blocks(rows):
    return regression(nn.Sequential(*(Counting() for _ in range(4))), rows)


class Replacing(nn.Module):
    """A block that registers a new tensor in place of its buffer in every call."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + x.detach().mean(0)
        return torch.tanh(self.linear(x)) * (1 + self.mean)


@sample
def replaced_buffers(rows):
    return regression(nn.Sequential(*(Replacing() for _ in range(4))), rows)


class Dropping(nn.Module):
    """Leaves layers out by a draw, and looks at another draw of torch's in glue."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x):
        for layer in self.layers:
            if not self.training or torch.rand([]) >= 0.3:
                x = x + torch.tanh(layer(x))
        return F.dropout(x, 0.1, self.training)


@sample(random=True)
def dropped_layers(rows):
    return regression(Dropping(), rows)


class PythonDraws(nn.Module):
    """Draws from Python's and NumPy's generators, in a block and between blocks."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Jittering() for _ in range(4))

    def forward(self, x):
        for layer in self.layers:
            if self.training:
                x = x * torch.tensor(numpy.random.rand(WIDTH), device=x.device)
                x = x + 1 if random.random() < 0.5 else x
            x = layer(x)
        return x


class Jittering(nn.Module):
    """A layer, by a factor that Python draws."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        factor = random.random() if self.training else 0.5
        return torch.tanh(self.linear(x)) * factor


@sample(random=True)
def python_draws(rows):
    return regression(PythonDraws(), rows)


# Batches and outputs.


class Masked(nn.Module):
    """Looks at the mask in Python, and takes another path if nothing is masked."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x, mask, scale=1.0):
        weights = mask.double()
        if mask.all():
            weights = weights * 2
        for block in self.blocks:
            x = torch.tanh(block(x)) * weights[..., None] * scale
        return x


def masked_mean(output, batch):
    return F.mse_loss(output, batch["target"])


@sample
def guarded_mask(rows):
    mask = torch.ones(rows, dtype=torch.bool)
    mask[1::3] = False
    batch = {
        "x": numbers(rows, WIDTH), "mask": mask, "target": numbers(rows, WIDTH), "scale": 0.5
    }  # fmt: skip
    return Sample(Masked(), batch, masked_mean)


class WithLoss(nn.Module):
    """Autoencoder of a tensor; the output is a dictionary that carries the loss."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x):
        y = x
        for block in self.blocks:
            y = torch.tanh(block(y))
        return {"loss": F.mse_loss(y, x), "y": y}


@sample
def loss_in_output(rows):
    return Sample(WithLoss(), numbers(rows, WIDTH), None)


@dataclass
class Output:
    """What ``ReturnsDataclass`` returns."""

    hidden: Tensor
    parts: dict[str, Tensor]
    loss: Tensor | None = None


class ReturnsDataclass(nn.Module):
    """Returns a dataclass with values of early and late blocks in it."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x):
        seen = [x]
        for block in self.blocks:
            seen.append(torch.tanh(block(seen[-1])))
        return Output(seen[-1], {"early": seen[1], "input": x})


def dataclass_loss(output, batch):
    return F.mse_loss(output.hidden + output.parts["early"] ** 2, batch[1])


@sample
def dataclass_output(rows):
    return regression(ReturnsDataclass(), rows)._replace(loss=dataclass_loss)


def dictionary_loss(output, batch):
    return F.mse_loss(output["last"], batch[1]) + output["penalty"].mean()


class ReturnsDictionary(nn.Module):
    """Returns a dictionary; part of the loss is of an early value."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x):
        penalty = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        for block in self.blocks:
            x = torch.tanh(block(x))
            penalty = penalty + x.square().sum(-1)
        return {"last": x, "penalty": penalty}


@sample
def dictionary_output(rows):
    return regression(ReturnsDictionary(), rows)._replace(loss=dictionary_loss)


# Glue.


class InPlaceGlue(nn.Module):
    """Writes in place between blocks: whole tensors, parts of them, and through views."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x):
        out = torch.zeros(*x.shape, len(self.blocks), dtype=x.dtype, device=x.device)
        for index, block in enumerate(self.blocks):
            y = block(x)
            y += x
            y.view(-1)[:3].mul_(0.5)
            x = torch.tanh(y)
            out[..., index] = x
        return out.sum(-1)


@sample
def in_place_glue(rows):
    return regression(InPlaceGlue(), rows)


class Recurrent(nn.Module):
    """A stack of LSTMs, one of them of two layers with dropout between."""

    def __init__(self, dropout):
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.LSTM(WIDTH, WIDTH, batch_first=True),
                nn.LSTM(WIDTH, WIDTH, 2, batch_first=True, dropout=dropout),
                nn.LSTM(WIDTH, WIDTH // 2, batch_first=True, bidirectional=True),
            ]
        )
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        for layer in self.layers:
            x, _ = layer(x)
        return self.head(x)


@sample
def lstm(rows):
    return sequences(Recurrent(0.0), rows)


@sample(random=True)
def lstm_dropout(rows):
    return sequences(Recurrent(0.3), rows)


class Checkpointed(nn.Module):
    """Recomputes its own blocks with ``torch.utils.checkpoint``."""

    def __init__(self, *, reentrant, dropout=0.0):
        super().__init__()
        self.reentrant = reentrant
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Dropout(dropout)) for _ in range(4)
        )

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        return x


@sample
def checkpoint_reentrant(rows):
    return regression(Checkpointed(reentrant=True), rows)


@sample
def checkpoint_non_reentrant(rows):
    return regression(Checkpointed(reentrant=False), rows)


class CheckpointedInside(nn.Module):
    """A block that recomputes its own inside in backward, with the same draws."""

    def __init__(self, *, reentrant):
        super().__init__()
        self.reentrant = reentrant
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.4)

    def forward(self, x):
        if self.reentrant is None:
            return self.inside(x)
        return checkpoint(self.inside, x, use_reentrant=self.reentrant)

    def inside(self, x):
        return self.dropout(torch.tanh(self.linear(x)))


def _checkpointed_inside(rows, *, reentrant):
    blocks = [CheckpointedInside(reentrant=reentrant) for _ in range(3)]
    return regression(nn.Sequential(nn.Linear(WIDTH, WIDTH), *blocks), rows)


@sample(random=True)
def not_checkpointed_inside(rows):
    return _checkpointed_inside(rows, reentrant=None)


@sample(random=True)
def checkpointed_inside(rows):
    return _checkpointed_inside(rows, reentrant=False)


@sample(random=True)
def checkpointed_inside_reentrant(rows):
    return _checkpointed_inside(rows, reentrant=True)


class Double(torch.autograd.Function):
    """Twice its input; its gradient is three times too large, so that a replay would show."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 6 * gradient


class CustomFunction(nn.Module):
    """Uses an ``autograd.Function`` between blocks."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x):
        for block in self.blocks:
            x = torch.tanh(Double.apply(block(x)))
        return x


@sample
def custom_function(rows):
    return regression(CustomFunction(), rows)


class NoGrad(nn.Module):
    """Computes a target without gradients, and detaches."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x):
        with torch.no_grad():
            weight = torch.sigmoid(self.blocks[0](x))
        for block in self.blocks:
            x = torch.tanh(block(x)) * weight
            weight = (weight + x.detach()).softmax(-1)
        return x


@sample
def no_grad_glue(rows):
    return regression(NoGrad(), rows)


# Counted losses.


def padded_sum(logits, batch):
    """Sum over valid tokens, and their number."""
    valid = batch["labels"] != -100
    total = F.cross_entropy(
        logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=-100, reduction="sum"
    )
    return LossSum(total, valid.sum())


def pad(labels):
    """Rows of very different lengths; the second and the last row have no valid token."""
    for row in range(len(labels)):
        labels[row, row % labels.shape[1] :] = -100
    labels[0] = 3
    labels[1:2] = -100
    labels[max(1, len(labels) - 1) :] = -100
    return labels


@sample
def loss_sum_padded(rows):
    model = GPT(vocab=11, seq=5, width=8, num_blocks=3, num_heads=2)
    batch = {"ids": torch.randint(11, (rows, 5)), "labels": pad(torch.randint(11, (rows, 5)))}
    return Sample(model, batch, padded_sum)


# Hugging Face.


def ForCausalLMLoss(logits, labels, vocab_size, num_items_in_batch=None, **kwargs):  # noqa: N802
    """The loss of transformers of this name, which rounds logits to float32, in float64."""
    del kwargs
    labels = F.pad(labels, (0, 1), value=-100)[..., 1:].flatten()
    total = F.cross_entropy(logits.view(-1, vocab_size), labels, reduction="sum")
    return total / ((labels != -100).sum() if num_items_in_batch is None else num_items_in_batch)


def _huggingface(kind, configuration, rows, seq=6):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model = getattr(transformers, kind)(configuration(transformers))
    ids = torch.randint(16, (rows, seq))
    mask = torch.ones_like(ids)
    mask[1::2, seq - 2 :] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "labels": pad(ids.clone())}
    model.loss_function = ForCausalLMLoss
    return Sample(model, batch, None)


def _llama(rows, *, tied):
    def configuration(transformers):
        return transformers.LlamaConfig(
            vocab_size=16,
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=16,
            tie_word_embeddings=tied,
            attn_implementation="sdpa",
            pad_token_id=0,
        )

    return _huggingface("LlamaForCausalLM", configuration, rows)


@sample
def llama_tied(rows):
    return _llama(rows, tied=True)


@sample
def llama_untied(rows):
    """With the loss function of transformers itself."""
    made = _llama(rows, tied=False)
    del made.model._loss_function
    return made


def _gpt2(rows, **kwargs):
    def configuration(transformers):
        return transformers.GPT2Config(
            vocab_size=16, n_positions=8, n_embd=8, n_layer=3, n_head=2, **kwargs
        )

    return _huggingface("GPT2LMHeadModel", configuration, rows)


@sample
def gpt2(rows):
    return _gpt2(rows, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)


@sample(random=True)
def gpt2_dropout(rows):
    return _gpt2(rows)


@sample(random=True)
def gpt2_checkpointing(rows):
    made = _gpt2(rows)
    enable = getattr(made.model, "activation_checkpointing_enable", None)
    (enable or made.model.gradient_checkpointing_enable)()
    return made


HUGGING_FACE = frozenset(
    {"llama_tied", "llama_untied", "gpt2", "gpt2_dropout", "gpt2_checkpointing"}
)
PLAIN = tuple(name for name in SAMPLES if name not in HUGGING_FACE)
