"""Small models of sequences in plain PyTorch: torch's own layers, and what people write by hand."""

import math

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from zoo.catalogue import ROWS, Sample
from zoo.plain import CLASSES, WIDTH, Dense, classified, plain

VOCAB = 16
SEQ = 8


def tokens(model, loss=None, **options):
    """Padded rows of tokens, their lengths, a class for each row."""
    lengths = torch.tensor([8, 5, 6, 8, 3])
    ids = torch.randint(1, VOCAB, (ROWS, SEQ))
    ids = ids * (torch.arange(SEQ) < lengths[:, None])
    batch = {"ids": ids, "lengths": lengths, "target": torch.randint(0, CLASSES, (ROWS,))}
    return Sample(model, batch, loss or classified)


def next_token(output, batch):
    """Cross entropy of each next token, summed over rows and divided by their number."""
    scores = output[0] if isinstance(output, tuple) else output
    return F.cross_entropy(scores[:, :-1].transpose(1, 2), batch["ids"][:, 1:])


# Transformers of torch.


class Translator(nn.Module):
    """nn.Transformer, with causal and padding masks."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH, padding_idx=0)
        self.positions = nn.Embedding(SEQ, WIDTH)
        self.transformer = nn.Transformer(
            WIDTH, 2, 3, 3, dim_feedforward=16, dropout=0.1, batch_first=True
        )
        self.head = nn.Linear(WIDTH, VOCAB)

    def forward(self, source, ids):
        place = torch.arange(ids.shape[1], device=ids.device)
        padded = source == 0
        causal = nn.Transformer.generate_square_subsequent_mask(ids.shape[1], dtype=torch.float64)
        made = self.transformer(
            self.embed(source) + self.positions(place),
            self.embed(ids) + self.positions(place),
            tgt_mask=causal,
            src_key_padding_mask=padded,
            memory_key_padding_mask=padded,
            tgt_is_causal=True,
        )
        return self.head(made)


@plain("nn.Transformer, masks")
def translator():
    made = tokens(Translator(), next_token)
    return made._replace(batch={**made.batch, "source": made.batch["ids"].flip(1)})


class Encoder(nn.Module):
    """nn.TransformerEncoder, with a token for the class."""

    def __init__(self, **options):
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            WIDTH, 2, dim_feedforward=16, batch_first=True, **options
        )
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.summary = nn.Parameter(torch.randn(1, 1, WIDTH))
        norm = nn.LayerNorm(WIDTH)
        self.encoder = nn.TransformerEncoder(layer, 4, norm, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, ids):
        x = torch.cat([self.summary.expand(len(ids), -1, -1), self.embed(ids)], dim=1)
        padded = F.pad(ids == 0, (1, 0))
        return self.head(self.encoder(x, src_key_padding_mask=padded)[:, 0])


@plain("nn.TransformerEncoder")
def encoder():
    return tokens(Encoder())


@plain("nn.TransformerEncoder, norm first")
def encoder_norm_first():
    return tokens(Encoder(norm_first=True, activation="gelu"))


# Recurrent networks.


class LstmStack(nn.Module):
    """LSTMs on each other; each starts where the one below has ended."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.layers = nn.ModuleList(nn.LSTM(WIDTH, WIDTH, batch_first=True) for _ in range(4))
        self.head = nn.Linear(WIDTH, VOCAB)

    def forward(self, ids, state=None):
        x = self.embed(ids)
        for layer in self.layers:
            x, state = layer(x, state)
        return self.head(x), state


@plain("LSTM stack, states passed on")
def lstm_stack():
    return tokens(LstmStack(), next_token)


@plain("LSTM of several layers")
def deep_lstm():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(VOCAB, WIDTH)
            options = {"num_layers": 2, "dropout": 0.1, "bidirectional": True, "batch_first": True}
            self.below = nn.LSTM(WIDTH, WIDTH, **options)
            self.above = nn.LSTM(2 * WIDTH, WIDTH, proj_size=4, batch_first=True)
            self.head = nn.Linear(4, VOCAB)

        def forward(self, ids):
            x, _ = self.below(self.embed(ids))
            x, _ = self.above(x)
            return self.head(x)

    return tokens(Deep(), next_token)


class PackedGru(nn.Module):
    """GRUs over packed sequences of several lengths."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.layers = nn.ModuleList(
            nn.GRU(WIDTH, WIDTH // 2, batch_first=True, bidirectional=True) for _ in range(4)
        )
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, ids, lengths):
        x = pack_padded_sequence(self.embed(ids), lengths, batch_first=True, enforce_sorted=False)
        for layer in self.layers:
            x, last = layer(x)
        padded, _ = pad_packed_sequence(x, batch_first=True)
        return self.head(padded.amax(1) + last.transpose(0, 1).flatten(1))


@plain("GRU, packed sequences")
def packed_gru():
    return tokens(PackedGru())


class Cells(nn.Module):
    """A cell called once for each place, and an attention over what it made."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.cell = nn.LSTMCell(WIDTH, WIDTH)
        self.query = nn.Parameter(torch.randn(WIDTH))
        self.after = nn.ModuleList(Dense() for _ in range(2))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, ids):
        x = self.embed(ids)
        hidden = cell = torch.zeros(len(ids), WIDTH, dtype=x.dtype)
        made = []
        for place in range(x.shape[1]):
            hidden, cell = self.cell(x[:, place], (hidden, cell))
            made.append(hidden)
        made = torch.stack(made, dim=1)
        scores = (made @ self.query).masked_fill(ids == 0, -math.inf)
        x = (scores.softmax(-1)[..., None] * made).sum(1)
        for block in self.after:
            x = block(x)
        return self.head(x)


@plain("LSTM cell in a loop")
def cells():
    return tokens(Cells())


class Speech(nn.Module):
    """Convolutions, a recurrent layer, and a loss over alignments."""

    def __init__(self):
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv1d(3, WIDTH, 3, padding=1), nn.ReLU(), nn.Conv1d(WIDTH, WIDTH, 3, stride=2)
        )
        self.recurrent = nn.RNN(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, CLASSES + 1)

    def forward(self, sound):
        x = self.convolutions(sound).transpose(1, 2)
        x, _ = self.recurrent(x)
        return self.head(x).log_softmax(-1)


@plain("speech, CTC loss")
def speech():
    def loss(output, batch):
        sizes = torch.full((len(output),), output.shape[1])
        steps = output.transpose(0, 1)
        return F.ctc_loss(steps, batch["text"], sizes, batch["lengths"])

    batch = {
        "sound": torch.randn(ROWS, 3, 24, dtype=torch.float64),
        "text": torch.randint(1, CLASSES + 1, (ROWS, 4)),
        "lengths": torch.tensor([4, 3, 4, 2, 4]),
    }
    return Sample(Speech(), batch, loss)


# Transformers by hand.


def rotated(x, cosine, sine):
    """Turn pairs of numbers by angles that depend on the place."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cosine - b * sine, b * cosine + a * sine], dim=-1)


class Attention(nn.Module):
    """A block of a GPT: attention with rotated queries and keys, then what ``inner`` does."""

    def __init__(self, inner):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.inner = inner

    def forward(self, x, tables):
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, WIDTH // 2)).permute(2, 0, 3, 1, 4)
        q, k = (rotated(each, *tables) for each in (q, k))
        made = F.scaled_dot_product_attention(q, k, v, dropout_p=0.1, is_causal=True)
        return self.inner(x + self.out(made.transpose(1, 2).flatten(2)))


class Gpt(nn.Module):
    """A GPT whose tables of angles are a buffer, and whose head is its embedding."""

    def __init__(self, make_inner):
        super().__init__()
        angles = torch.arange(32)[:, None] / 100 ** torch.arange(0, 1, 0.5)
        self.register_buffer("angles", angles, persistent=False)
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.blocks = nn.ModuleList(Attention(make_inner()) for _ in range(4))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, ids):
        angles = self.angles[: ids.shape[1]]
        tables = angles.cos(), angles.sin()
        x, balance = self.embed(ids), 0.0
        for block in self.blocks:
            x = block(x, tables)
            if isinstance(x, tuple):
                x, more = x
                balance = balance + more
        return F.linear(self.norm(x), self.embed.weight), balance


@plain("GPT, rotary buffer, tied head")
def gpt():
    return tokens(Gpt(Dense), next_token)


class Experts(nn.Module):
    """A mixture of experts: each token goes to the two that a router likes best."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(WIDTH, 4, bias=False)
        self.experts = nn.ModuleList(Dense() for _ in range(4))

    def forward(self, x):
        flat = x.flatten(0, 1)
        chances = self.router(flat).softmax(-1)
        weights, chosen = chances.topk(2, dim=-1)
        made = torch.zeros_like(flat)
        for index, expert in enumerate(self.experts):
            rows, place = (chosen == index).nonzero(as_tuple=True)
            if len(rows):
                made.index_add_(0, rows, expert(flat[rows]) * weights[rows, place, None])
        used = F.one_hot(chosen, 4).double().mean((0, 1))
        return x + made.view_as(x), 4 * (used * chances.mean(0)).sum()


@plain("mixture of experts, balanced")
def experts():
    def loss(output, batch):
        return next_token(output, batch) + 0.01 * output[1]

    return tokens(Gpt(Experts), loss)


class Denoiser(nn.Module):
    """A diffusion model's training step: noise and time are drawn and embedded in forward."""

    def __init__(self):
        super().__init__()
        self.register_buffer("kept", torch.linspace(0.99, 0.1, 10).cumprod(0))
        self.time = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.blocks = nn.ModuleList(Dense() for _ in range(4))
        self.shifts = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH) for _ in range(4))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        step = torch.randint(0, len(self.kept), (len(x),), device=x.device)
        noise = torch.randn_like(x)
        share = self.kept[step][:, None]
        noisy = share.sqrt() * x + (1 - share).sqrt() * noise
        frequencies = torch.exp(-torch.arange(WIDTH // 2, dtype=x.dtype))
        angles = step[:, None] * frequencies
        time = self.time(torch.cat([angles.sin(), angles.cos()], dim=-1))
        for block, shift in zip(self.blocks, self.shifts, strict=True):
            scale, offset = shift(F.silu(time)).chunk(2, dim=-1)
            noisy = block(noisy * (1 + scale) + offset)
        return F.mse_loss(self.out(noisy), noise)


@plain("denoiser, time embedding")
def denoiser():
    batch = {"x": torch.randn(ROWS, WIDTH, dtype=torch.float64)}
    return Sample(Denoiser(), batch, lambda output, batch: output)
