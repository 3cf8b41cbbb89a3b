"""Models that need a way out: modules to keep whole, and stages written by hand."""

import torch
from torch import nn
from torch.nn import functional as F


def square(output, batch):
    del batch
    return output.square().mean()


class Settling(nn.Module):
    """Repeats a layer until what it gives settles: only Python can tell how often."""

    def __init__(self, width=6):
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x):
        times = 0
        while times < 5 and float(x.detach().abs().max()) > 0.5:
            x = torch.tanh(self.inner(x)) * 0.8
            times += 1
        return self.dropout(x) if float(x.detach().sum()) < 100 else x


class Model(nn.Module):
    """Two settling modules outside of containers, and an encoder whose head is a sequence."""

    def __init__(self, width=6):
        super().__init__()
        self.first = nn.Linear(width, width)
        self.one = Settling(width)
        self.two = Settling(width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 3))

    def forward(self, x):
        x = self.first(x)
        x = x + self.one(x)
        x = x + self.two(x)
        return self.head(self.norm(x))


def model_and_batch(rows=7):
    torch.manual_seed(1)
    return Model().double(), 2 * torch.randn(rows, 6, dtype=torch.float64)


class Front(nn.Module):
    """Takes two arguments and hands a dictionary on."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x, mask):
        x = self.dropout(self.linear(x)) * mask
        if float(x.detach().sum()) > 0:  # hidden in a stage, Python may decide
            x = x * 2
        return {"hidden": x, "mask": mask}


class Middle(nn.Module):
    """Takes keywords, hands a tuple on."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(6)

    def forward(self, hidden, mask):
        return self.norm(hidden) * mask, hidden


class Back(nn.Module):
    """Takes positional arguments."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, x, skip):
        return self.head(x + skip)


def by_hand():
    torch.manual_seed(2)
    stages = [Front().double(), Middle().double(), Back().double()]
    batch = {
        "x": torch.randn(7, 6, dtype=torch.float64),
        "mask": (torch.rand(7, 6) > 0.3).double(),
        "y": torch.randn(7, 3, dtype=torch.float64),
    }
    return stages, batch


def error(output, batch):
    return F.mse_loss(output, batch["y"])
