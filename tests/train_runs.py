"""What tests of the trainer train besides text: a small network on numbers, and how it crashes."""

import torch
from torch import nn
from torch.nn import functional as F

from intandem.train import Config, Data
from intandem.train.config import (
    CheckpointConfig,
    DataConfig,
    LearningRateConfig,
    ModelConfig,
    PipelineConfig,
    ValidationConfig,
)
from intandem.train.loggers import read_metrics

SCALE = 1.0
"""Of what ``data`` returns; a test that wants other data changes it."""
LENGTH = 10**6
"""Batches that a ``Stream`` has."""


def data():
    """64 rows and as many that are held out."""
    generator = torch.Generator().manual_seed(0)
    x = SCALE * torch.randn(128, 4, generator=generator)
    y = x @ torch.ones(4, 1)
    return Data(training=(x[:64], y[:64]), validation=(x[64:], y[64:]), loss=loss)


class Augmented:
    """Rows that differ each time."""

    def __len__(self):
        return 64

    def __getitem__(self, row):
        x = torch.randn(4)
        return x, x.sum(0, keepdim=True)


def augmented_data():
    return Data(training=Augmented(), loss=loss)


class Stream:
    """An iterator of one's own, which may end."""

    def __init__(self):
        self.at = 0

    def __next__(self):
        if self.at == LENGTH:
            raise StopIteration
        self.at += 1
        x = SCALE * torch.randn(8, 4, generator=torch.Generator().manual_seed(self.at))
        return x, x.sum(1, keepdim=True)

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


def streamed_data():
    return Data(training=Stream(), loss=loss)


def loss(output, batch):
    return F.mse_loss(output, batch[1])


def model():
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def config(directory, source="data", **more):
    """Eight steps on two ranks."""
    given = {
        "steps": 8,
        "pipeline": PipelineConfig(ranks=2, threads_per_rank=1),
        "validation": ValidationConfig(every=4, batches=1),
        "checkpoint": CheckpointConfig(every=3, keep=2),
        **more,
    }
    return Config(
        directory=str(directory),
        data=DataConfig(source=f"{__file__}:{source}", rows=8),
        model=ModelConfig(name=f"{__file__}:model"),
        learning_rate=LearningRateConfig(warmup=2),
        **given,
    )


def curve(directory):
    """What was logged, without what the clock says."""
    timed = ("seconds", "tokens_per_s", "rows_per_s")
    return [
        {key: value for key, value in line.items() if key not in timed}
        for line in read_metrics(directory)
    ]


class HaltError(Exception):
    """In place of a crash."""


class CrashAt:
    """A progress that raises when a step is over."""

    def __init__(self, step):
        self.step = step
        self.said = []

    def __call__(self, state):
        if state.step == self.step:
            raise HaltError

    def say(self, line):
        self.said.append(line)
