"""Small modules in plain PyTorch, each with a structure that users' models have."""

import torch
from torch import nn
from torch.nn import functional as F

from zoo.catalogue import ROWS, Sample, animal

WIDTH = 8
CLASSES = 4


def plain(name, **options):
    """Enter a function that returns a model and takes the ``Sample`` of a table of numbers."""
    return animal(name, library="torch", **options)


def table(model, loss=None):
    """Rows of numbers and their classes."""
    batch = {
        "x": torch.randn(ROWS, WIDTH, dtype=torch.float64),
        "target": torch.randint(0, CLASSES, (ROWS,)),
    }
    return Sample(model, batch, loss or classified)


def classified(output, batch):
    """Cross entropy of the class scores."""
    return F.cross_entropy(output, batch["target"])


class Dense(nn.Module):
    """A block: two layers and a residual."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        return x + self.drop(self.down(F.gelu(self.up(x))))


def dense(count, width=WIDTH):
    """A list of blocks."""
    return nn.ModuleList(Dense(width) for _ in range(count))


# Graphs of modules.


class Branches(nn.Module):
    """Four ways side by side, joined twice."""

    def __init__(self):
        super().__init__()
        self.ways = nn.ModuleList(nn.Sequential(Dense(), Dense()) for _ in range(4))
        self.join = nn.Linear(2 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        a, b, c, d = (way(x) for way in self.ways)
        return self.head(self.join(torch.cat([a * b, c - d], dim=-1)) + x)


@plain("branches that join")
def branches():
    return table(Branches())


class LongSkips(nn.Module):
    """A U-Net in the small: what each block on the way down made is read on the way up."""

    def __init__(self):
        super().__init__()
        self.down, self.up = dense(4), dense(4)
        self.merge = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH) for _ in range(4))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        kept = []
        for block in self.down:
            x = block(x)
            kept.append(x)
        for merge, block in zip(self.merge, self.up, strict=True):
            x = block(merge(torch.cat([x, kept.pop()], dim=-1)))
        return self.head(x)


@plain("skips over many stages")
def long_skips():
    return table(LongSkips())


class DenselyConnected(nn.Module):
    """Every block reads all blocks before it."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH * (i + 1), WIDTH) for i in range(5))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        made = [x]
        for layer in self.layers:
            made.append(torch.relu(layer(torch.cat(made, dim=-1))))
        return self.head(torch.stack(made).mean(0))


@plain("dense connections")
def densely_connected():
    return table(DenselyConnected())


class TwoTowers(nn.Module):
    """Two inputs, two towers, four outputs by name."""

    def __init__(self):
        super().__init__()
        self.users, self.items = dense(3), dense(3)
        self.rating = nn.Bilinear(WIDTH, WIDTH, 1)

    def forward(self, user, item):
        for block in self.users:
            user = block(user)
        for block in self.items:
            item = block(item)
        rating = self.rating(user, item).squeeze(-1)
        return {"rating": rating, "user": user, "item": item, "angle": (user * item).sum(-1)}


@plain("several inputs and outputs")
def two_towers():
    batch = {name: torch.randn(ROWS, WIDTH, dtype=torch.float64) for name in ("user", "item")}
    batch["rating"] = torch.randn(ROWS, dtype=torch.float64)

    def loss(output, batch):
        return F.mse_loss(output["rating"], batch["rating"]) + output["angle"].square().mean()

    return Sample(TwoTowers(), batch, loss)


class Message(nn.Module):
    """One round of messages along edges."""

    def __init__(self):
        super().__init__()
        self.send = nn.Linear(2 * WIDTH, WIDTH)
        self.keep = nn.GRUCell(WIDTH, WIDTH)

    def forward(self, nodes, source, target):
        messages = torch.relu(self.send(torch.cat([nodes[source], nodes[target]], dim=-1)))
        arrived = torch.zeros_like(nodes).index_add(0, target, messages)
        return self.keep(arrived, nodes)


class GraphNet(nn.Module):
    """Graphs of the batch put side by side as one, with edges as pairs of numbers."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, WIDTH)
        self.rounds = nn.ModuleList(Message() for _ in range(4))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, atoms, edges):
        rows, size = atoms.shape
        nodes = self.embed(atoms).flatten(0, 1)
        offset = torch.arange(rows, device=edges.device)[:, None] * size
        source, target = ((edges[..., end] + offset).flatten() for end in (0, 1))
        for layer in self.rounds:
            nodes = layer(nodes, source, target)
        degree = torch.zeros(rows * size, dtype=nodes.dtype).index_add_(
            0, target, torch.ones(target.shape, dtype=nodes.dtype)
        )
        pooled = (nodes * degree[:, None]).unflatten(0, (rows, size)).sum(1)
        return self.head(pooled)


@plain("graph neural net")
def graph_net():
    batch = {
        "atoms": torch.randint(0, 6, (ROWS, 7)),
        "edges": torch.randint(0, 7, (ROWS, 10, 2)),
        "target": torch.randint(0, CLASSES, (ROWS,)),
    }
    return Sample(GraphNet(), batch, classified)


# Containers and sharing.


class Routed(nn.Module):
    """Blocks found by name; the way through them is a list of names, and an argument."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleDict({name: Dense() for name in ("stem", "left", "right", "out")})
        self.heads = nn.ModuleDict({"four": nn.Linear(WIDTH, CLASSES), "two": nn.Linear(WIDTH, 2)})
        self.route = ["stem", "right", "left", "right", "out"]

    def forward(self, x, head="four"):
        for name in self.route:
            x = self.parts[name](x)
        return self.heads[head](x)


@plain("ModuleDict, routed by name")
def routed():
    return table(Routed())


class Nested(nn.Module):
    """Containers in containers in containers."""

    def __init__(self):
        super().__init__()
        pair = nn.ModuleDict({"a": Dense(), "b": nn.Sequential(Dense(), nn.ReLU())})
        more = nn.ModuleDict({"a": Dense(), "b": nn.Sequential(nn.Sequential(Dense()), Dense())})
        self.levels = nn.ModuleList([nn.ModuleList([pair, more]), nn.Sequential(Dense(), Dense())])
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES))

    def forward(self, x):
        for level in self.levels[0]:
            x = level["b"](level["a"](x))
        return self.head(self.levels[1](x))


@plain("nested containers")
def nested():
    return table(Nested())


class Shared(nn.Module):
    """One block called at two depths, and one called in a row."""

    def __init__(self):
        super().__init__()
        self.first, self.shared, self.repeated = Dense(), Dense(), Dense()
        self.between = dense(2)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        x = self.shared(self.first(x))
        for block in self.between:
            x = self.repeated(block(x))
        return self.head(self.shared(x))


@plain("modules called twice")
def shared():
    return table(Shared())


class TiedAutoencoder(nn.Module):
    """The decoder is the encoder's weights, transposed in glue."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(WIDTH)) for _ in range(4))

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        for layer, bias in zip(reversed(self.layers), reversed(self.biases), strict=True):
            x = F.linear(torch.tanh(x), layer.weight.t(), bias)
        return x


@plain("tied autoencoder")
def tied_autoencoder():
    return table(TiedAutoencoder(), lambda output, batch: F.mse_loss(output, batch["x"]))


class Siamese(nn.Module):
    """One encoder for three inputs."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(*dense(4))

    def forward(self, anchor, near, far):
        return tuple(F.normalize(self.encoder(x), dim=-1) for x in (anchor, near, far))


@plain("siamese encoder")
def siamese():
    names = ("anchor", "near", "far")
    batch = {name: torch.randn(ROWS, WIDTH, dtype=torch.float64) for name in names}
    return Sample(Siamese(), batch, lambda output, batch: F.triplet_margin_loss(*output))


# Parameters and buffers in glue.


class InGlue(nn.Module):
    """Parameters that no module of their own holds."""

    def __init__(self):
        super().__init__()
        self.start = nn.Parameter(torch.randn(WIDTH))
        self.scales = nn.ParameterDict({"in": torch.ones(WIDTH), "out": torch.ones(WIDTH)})
        self.temperature = nn.Parameter(torch.tensor(0.5))
        self.blocks = dense(4)
        self.classes = nn.Parameter(torch.randn(CLASSES, WIDTH))

    def forward(self, x):
        x = (x + self.start) * self.scales["in"]
        for block in self.blocks:
            x = block(x) * torch.sigmoid(self.start)
        return (x * self.scales["out"]) @ self.classes.t() / self.temperature.exp()


@plain("parameters used in glue")
def in_glue():
    return table(InGlue())


class HyperNetwork(nn.Module):
    """The weights of one layer are what another has computed."""

    def __init__(self):
        super().__init__()
        self.blocks = dense(4)
        self.makes_weights = nn.Linear(WIDTH, WIDTH * CLASSES)

    def forward(self, x):
        for block in self.blocks[:2]:
            x = block(x)
        weights = self.makes_weights(x).unflatten(-1, (CLASSES, WIDTH))
        for block in self.blocks[2:]:
            x = block(x)
        return torch.einsum("bcw,bw->bc", weights, x)


@plain("weights made by a network")
def hyper_network():
    return table(HyperNetwork())


class Statistics(nn.Module):
    """Running statistics that forward keeps itself, besides those of its layers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("mask", (torch.arange(WIDTH) % 3 > 0).double(), persistent=False)
        self.blocks = nn.ModuleList(nn.Sequential(Dense(), nn.BatchNorm1d(WIDTH)) for _ in range(4))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
            self.calls += 1
        x = (x - self.mean) * self.mask
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@plain("buffers updated by forward")
def statistics():
    return table(Statistics())


class InPlace(nn.Module):
    """Glue that writes to what it has."""

    def __init__(self):
        super().__init__()
        self.blocks = dense(4)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        gathered = torch.zeros(len(self.blocks), *x.shape, dtype=x.dtype)
        for index, block in enumerate(self.blocks):
            x = block(x).mul_(0.5)
            x[:, ::2] += 0.1
            gathered[index] = x
        halves = gathered.sum(0).add_(x)
        halves[:, : WIDTH // 2].clamp_(-1, 1)
        return self.head(F.relu_(halves))


@plain("glue that writes in place")
def in_place():
    return table(InPlace())
