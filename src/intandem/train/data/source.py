"""Finds the data that a configuration names."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from intandem.train.data.dataset import Data
from intandem.train.data.fingerprint import fingerprint_of
from intandem.train.data.images import image_data
from intandem.train.data.text import text_data
from intandem.user_code import call_as_configured

if TYPE_CHECKING:
    from intandem.train.config import Config

KINDS = "text:PATH, stdlib, images:digits, or module:function"


def find_data(config: Config, tokenizer_path: Path) -> Data:
    """Return what ``config.data`` names.

    Args:
        config: of the run.
        tokenizer_path: where learned tokens are kept.

    Raises:
        ValueError: if it names no kind of data.
        RunError: if there is none in that place.
    """
    source = config.data.source
    if source == "stdlib" or source.startswith("text:"):
        return text_data(config.data, config.seed, tokenizer_path)
    if source.startswith("images:"):
        return image_data(config.data)
    if ":" in source:
        return _own(config)
    msg = f"data.source is {source!r}; expected {KINDS}"
    if Path(source).exists():
        msg = f"data.source is {source!r}; for that file or folder, give text:{source}"
    raise ValueError(msg)


def _own(config: Config) -> Data:
    source = config.data.source
    torch.manual_seed(config.seed)  # every rank, and a run that is gone on with, draws the same
    random.seed(config.seed)
    found = call_as_configured(source, "data.arguments", **(config.data.arguments or {}))
    if not isinstance(found, Data):
        msg = (
            f"{source} returned a {type(found).__name__}; expected "
            "intandem.train.Data(training=..., validation=..., loss=...)"
        )
        raise TypeError(msg)
    about = found.about or f"data of {source}"
    known = found.fingerprint or fingerprint_of(found.training)
    return replace(found, about=about, fingerprint=known)
