"""Small modules in plain PyTorch: weights that are computed, norms, draws, what else layers do."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

from zoo.catalogue import ROWS, Sample
from zoo.plain import CLASSES, WIDTH, Dense, classified, dense, plain, table


class Wrapped(nn.Module):
    """Four linear layers, each passed through a function that changes how its weight is made."""

    def __init__(self, wrap):
        super().__init__()
        self.blocks = nn.ModuleList(wrap(nn.Linear(WIDTH, WIDTH)) for _ in range(4))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.head(x)


@plain("weight norm")
def weight_norm():
    return table(Wrapped(parametrizations.weight_norm))


@plain("orthogonal weights")
def orthogonal():
    return table(Wrapped(parametrizations.orthogonal))


@plain("spectral norm")
def spectral_norm():
    return table(Wrapped(parametrizations.spectral_norm))


class Symmetric(nn.Module):
    """A parametrization of one's own."""

    def forward(self, weight):
        return weight.triu() + weight.triu(1).transpose(-1, -2)


class SymmetricShared(nn.Module):
    """Parametrized layers called twice, and their weights read in glue."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        for layer in self.layers:
            parametrize.register_parametrization(layer, "weight", Symmetric())
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        for layer in [*self.layers, *self.layers]:
            x = torch.tanh(layer(x))
        penalty = sum(layer.weight.square().sum() for layer in self.layers)
        return self.head(x), penalty


@plain("own parametrization, used twice")
def symmetric():
    def loss(output, batch):
        return classified(output[0], batch) + 1e-2 * output[1]

    return table(SymmetricShared(), loss)


class Norms(nn.Module):
    """Every norm of torch, over images."""

    def __init__(self):
        super().__init__()
        norms = [
            nn.BatchNorm2d(WIDTH),
            nn.GroupNorm(2, WIDTH),
            nn.InstanceNorm2d(WIDTH, affine=True, track_running_stats=True),
            nn.LocalResponseNorm(2),
        ]
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), norm, nn.SiLU())
            for norm in norms
        )
        self.head = nn.Conv2d(WIDTH, CLASSES, 1)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return F.adaptive_avg_pool2d(self.head(x), 1).flatten(1)


@plain("every norm")
def norms():
    images = torch.randn(ROWS, 3, 8, 8, dtype=torch.float64)
    batch = {"x": images, "target": torch.randint(0, CLASSES, (ROWS,))}
    return Sample(Norms(), batch, classified)


class Variational(nn.Module):
    """A variational autoencoder: it draws between its halves."""

    def __init__(self):
        super().__init__()
        self.encode, self.decode = dense(3), dense(3)
        self.moments = nn.Linear(WIDTH, 2 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        for block in self.encode:
            x = block(x)
        mean, log_variance = self.moments(x).chunk(2, dim=-1)
        code = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        divergence = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(-1)
        for block in self.decode:
            code = block(code)
        return self.out(code), divergence


@plain("variational autoencoder")
def variational():
    def loss(output, batch):
        again, divergence = output
        return F.mse_loss(again, batch["x"]) + 1e-2 * divergence.mean()

    return table(Variational(), loss)


class Coupling(nn.Module):
    """One step of a flow: half of the numbers say how the other half is changed."""

    def __init__(self, flip):
        super().__init__()
        self.flip = flip
        self.net = nn.Sequential(nn.Linear(WIDTH // 2, 16), nn.Tanh(), nn.Linear(16, WIDTH))

    def forward(self, x, volume):
        a, b = x.chunk(2, dim=-1)
        a, b = (b, a) if self.flip else (a, b)
        scale, shift = self.net(a).chunk(2, dim=-1)
        b = b * torch.tanh(scale).exp() + shift
        return torch.cat([a, b], dim=-1), volume + torch.tanh(scale).sum(-1)


class Flow(nn.Module):
    """A normalizing flow: two values pass from block to block."""

    def __init__(self):
        super().__init__()
        self.steps = nn.ModuleList(Coupling(flip=i % 2 == 1) for i in range(4))

    def forward(self, x):
        volume = torch.zeros(x.shape[0], dtype=x.dtype)
        for step in self.steps:
            x, volume = step(x, volume)
        return volume - 0.5 * x.square().sum(-1)


@plain("normalizing flow")
def flow():
    return table(Flow(), lambda output, batch: -output.mean())


class Frequencies(nn.Module):
    """Complex numbers between blocks."""

    def __init__(self):
        super().__init__()
        self.blocks = dense(4)
        self.filters = nn.ParameterList(nn.Parameter(torch.rand(WIDTH // 2 + 1)) for _ in range(4))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        spectrum = torch.fft.rfft(x)
        for block, gain in zip(self.blocks, self.filters, strict=True):
            spectrum = spectrum * gain * 1j
            spectrum = spectrum + torch.fft.rfft(block(torch.fft.irfft(spectrum, n=WIDTH)))
        return self.head(
            torch.view_as_real(spectrum).sum(-1) @ torch.ones(WIDTH // 2 + 1, WIDTH).to(x)
        )


@plain("complex numbers")
def frequencies():
    return table(Frequencies())


class Checkpointed(nn.Module):
    """torch.utils.checkpoint around what its blocks do."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(CheckpointedBlock() for _ in range(4))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class CheckpointedBlock(nn.Module):
    """Computes its inside twice."""

    def __init__(self):
        super().__init__()
        self.inner = Dense()

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=False)


@plain("checkpointing in blocks")
def checkpointed():
    return table(Checkpointed())


class Frozen(nn.Module):
    """Frozen blocks, one of them run without gradients, and adapters beside them."""

    def __init__(self):
        super().__init__()
        self.backbone = dense(4).requires_grad_(False)
        self.adapters = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        with torch.no_grad():
            x = self.backbone[0](x)
        for block, adapter in zip(self.backbone[1:], self.adapters, strict=True):
            x = block(x) + adapter(x)
        return self.head(x)


@plain("frozen backbone, adapters")
def frozen():
    return table(Frozen())


class StraightThrough(torch.autograd.Function):
    """Rounds, and passes the gradient on as it is."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Quantized(nn.Module):
    """Codes found in a table by distance, with a gradient that goes past the choice."""

    def __init__(self):
        super().__init__()
        self.before, self.after = dense(2), dense(2)
        self.codes = nn.Parameter(torch.randn(16, WIDTH))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        for block in self.before:
            x = block(x)
        nearest = torch.cdist(x, self.codes).argmin(-1)
        chosen = self.codes[nearest]
        commitment = (x - chosen.detach()).square().mean() + (x.detach() - chosen).square().mean()
        x = StraightThrough.apply(4 * x) / 4 + (chosen - x).detach()
        for block in self.after:
            x = block(x)
        return self.head(x), commitment


@plain("quantized, straight through")
def quantized():
    return table(Quantized(), lambda output, batch: classified(output[0], batch) + output[1])
