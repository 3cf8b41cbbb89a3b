"""Small modules in plain PyTorch: what they take and return, and how Python steers them."""

import enum
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from zoo.catalogue import ROWS, Sample
from zoo.plain import CLASSES, WIDTH, classified, dense, plain, table

# Outputs.


@dataclass
class Answer:
    """What a model says."""

    scores: torch.Tensor
    loss: torch.Tensor | None = None
    hidden: tuple = ()
    name: str = "answer"


class Returns(nn.Module):
    """Four blocks; ``shape`` says in which container it returns what it made."""

    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.blocks = dense(4)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x, target=None):
        hidden = [x := block(x) for block in self.blocks]
        scores = self.head(x)
        return self.shape(scores, hidden, target)


@plain("outputs as a dataclass")
def dataclass_output():
    def shape(scores, hidden, target):
        return Answer(scores, F.cross_entropy(scores, target), tuple(hidden))

    return table(Returns(shape))._replace(loss=None)


@plain("outputs as a dictionary")
def dictionary_output():
    def shape(scores, hidden, target):
        return {"loss": F.cross_entropy(scores, target), "scores": scores, "hidden": hidden}

    return table(Returns(shape))._replace(loss=None)


@plain("outputs as a tuple")
def tuple_output():
    def loss(output, batch):
        scores, hidden = output
        return classified(scores, batch) + hidden.square().mean()

    return table(Returns(lambda scores, hidden, target: (scores, hidden[1])), loss)


@plain("outputs nested")
def nested_output():
    def shape(scores, hidden, target):
        return [{"levels": (hidden[0], {"last": hidden[-1]})}, (Answer(scores), None, 3)]

    def loss(output, batch):
        levels, (answer, _, number) = output
        first, rest = levels["levels"]
        return classified(answer.scores, batch) + number * (first * rest["last"]).mean()

    return table(Returns(shape), loss)


# Arguments.


class Kind(enum.Enum):
    """How to pool."""

    MEAN = "mean"
    SUM = "sum"


class Options(nn.Module):
    """An optional tensor, a number, a name, and one of an enumeration."""

    def __init__(self):
        super().__init__()
        self.blocks = dense(4)
        self.heads = nn.ModuleDict({"small": nn.Linear(WIDTH, 2), "all": nn.Linear(WIDTH, CLASSES)})

    def forward(self, x, bias=None, *, repeat=1, kind=Kind.MEAN, head="all"):
        for block in self.blocks:
            for _ in range(repeat):
                x = block(x)
        if bias is not None:
            x = x + bias
        x = x if kind is Kind.SUM else x / WIDTH
        return self.heads[head](x)


class AnyKeywords(nn.Module):
    """Takes whatever is given, and passes on what it does not look at."""

    def __init__(self):
        super().__init__()
        self.inner = Options()

    def forward(self, target, **inputs):
        more = [inputs.pop(name) for name in sorted(inputs) if name.startswith("more_")]
        return self.inner(bias=sum(more), **inputs)


@plain("**kwargs inputs")
def any_keywords():
    made = table(AnyKeywords())
    extra = {name: torch.rand(ROWS, 1, dtype=torch.float64) for name in ("more_age", "more_size")}
    return made._replace(batch={**made.batch, **extra})


@plain("optional arguments, None")
def optional_arguments():
    made = table(Options())
    return made._replace(batch={**made.batch, "bias": None})


@plain("arguments that are not tensors")
def not_tensors():
    made = table(Options())
    more = {"repeat": 2, "kind": Kind.SUM, "head": "all"}
    return made._replace(batch={**made.batch, **more})


@plain("positional arguments")
def positional():
    made = table(Options())
    batch = (made.batch["x"], made.batch["target"])
    return Sample(made.model, batch, lambda output, batch: F.cross_entropy(output, batch[1]))


class Targets(nn.Module):
    """Three heads at three depths."""

    def __init__(self):
        super().__init__()
        self.blocks = dense(4)
        self.heads = nn.ModuleList([nn.Linear(WIDTH, n) for n in (CLASSES, 1, WIDTH)])

    def forward(self, x):
        made = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index > 0:
                made.append(self.heads[index - 1](x))
        return made


@plain("several targets")
def several_targets():
    def loss(output, batch):
        classes, value, again = output
        rest = F.mse_loss(value.squeeze(-1), batch["value"]) + F.l1_loss(again, batch["x"])
        return classified(classes, batch) + 0.5 * rest

    made = table(Targets(), loss)
    made.batch["value"] = torch.randn(ROWS, dtype=torch.float64)
    return made


# Python in forward.


class Flags(nn.Module):
    """Loops and branches that attributes of the module decide."""

    def __init__(self, *, use_norm=True, depth=4, exit_at=None):
        super().__init__()
        self.use_norm, self.depth, self.exit_at = use_norm, depth, exit_at
        self.blocks = dense(6)
        self.norm = nn.LayerNorm(WIDTH)
        self.heads = nn.ModuleList(nn.Linear(WIDTH, CLASSES) for _ in range(6))

    def forward(self, x):
        for index in range(self.depth):
            x = self.blocks[index](x)
            if self.use_norm and index % 2:
                x = self.norm(x)
            if self.exit_at is not None and index >= self.exit_at:
                return self.heads[index](x)
        return self.heads[self.depth - 1](x)


@plain("loops under a flag")
def flags():
    return table(Flags())


@plain("early exit by a number")
def early_exit():
    return table(Flags(depth=6, exit_at=4))


class Unrolled(nn.Module):
    """Euler's method: one block, many steps, with a step length that shrinks."""

    def __init__(self):
        super().__init__()
        self.field = nn.Sequential(nn.Linear(WIDTH + 1, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))
        self.embed, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        x, time = self.embed(x), 0.0
        for step in range(6):
            now = torch.full((x.shape[0], 1), time, dtype=x.dtype)
            x = x + self.field(torch.cat([x, now], dim=-1)) / (step + 1)
            time += 1 / (step + 1)
        return self.head(x)


@plain("one block unrolled")
def unrolled():
    return table(Unrolled())


class Mixed(nn.Module):
    """A bit of everything."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.embeddings = nn.ModuleDict({"town": nn.Embedding(5, WIDTH), "day": nn.Embedding(7, 8)})
        self.shared = nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))
        self.blocks = dense(4)
        self.gate = nn.Parameter(torch.zeros(WIDTH))
        self.norm = nn.BatchNorm1d(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x, features, *, weight=None, level=2, **unused):
        x = x.clone()
        for name, embedding in self.embeddings.items():
            x += embedding(features[name])
        kept = self.shared(x)
        for index, block in enumerate(self.blocks):
            x = block(x) if index != level else self.shared(block(x))
        x = self.norm(torch.lerp(x, kept, torch.sigmoid(self.gate)))
        with torch.no_grad():
            self.seen += x.abs().amax()
        scores = F.dropout(self.head(x), 0.1, self.training)
        return Answer(scores, hidden=(kept.square().mean(), {"x": x})), weight


@plain("a bit of everything")
def mixed():
    def loss(output, batch):
        answer, weight = output
        each = F.cross_entropy(answer.scores, batch["target"], reduction="none")
        return (each * weight).mean() + 0.1 * answer.hidden[0]

    made = table(Mixed(), loss)
    towns = {"town": torch.randint(0, 5, (ROWS,)), "day": torch.randint(0, 7, (ROWS,))}
    more = {"features": towns, "weight": torch.rand(ROWS, dtype=torch.float64), "level": 1}
    return made._replace(batch={**made.batch, **more})
