"""Training by configuration: what ``intandem train`` does, for Python.

    from intandem.train import Config, train

    outcome = train(Config(steps=200, directory="runs/first"))

Names are imported when they are first used: configurations are read without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from intandem.train.config import Config
    from intandem.train.config_file import read_config, write_config
    from intandem.train.data.dataset import Data
    from intandem.train.trainer import Outcome, train

_HOME = {
    "Config": "config",
    "Data": "data.dataset",
    "Outcome": "trainer",
    "read_config": "config_file",
    "train": "trainer",
    "write_config": "config_file",
}

__all__ = ["Config", "Data", "Outcome", "read_config", "train", "write_config"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        msg = f"module 'intandem.train' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"intandem.train.{_HOME[name]}"), name)
