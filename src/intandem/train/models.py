"""Finds the model that a configuration names."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from intandem.train.examples import load_example
from intandem.user_code import call_as_configured, find_function, takes

if TYPE_CHECKING:
    from collections.abc import Callable

    from intandem.train.config import Config, ModelConfig
    from intandem.train.data.dataset import Data

NEEDS = {
    "gpt": (("vocab", "seq"), 'text, such as data.source = "stdlib"'),
    "vit": (("size", "channels", "classes"), 'images, such as data.source = "images:digits"'),
}
"""Facts that a model has to know of the data, and which data have them."""


def find_model(config: Config, data: Data) -> nn.Module:
    """Return the model that ``config.model`` names, the same weights for the same seed.

    Raises:
        ValueError: if there is none, or it does not go with the data.
        TypeError: if a function of the user's returns none.
    """
    torch.manual_seed(config.seed)
    random.seed(config.seed)
    name = config.model.name
    if ":" in name:
        return _own(config.model, data)
    if name not in NEEDS:
        msg = f"model.name is {name!r}; expected gpt, vit or module:function"
        raise ValueError(msg)
    _check(config.model, data)
    build = {"gpt": _gpt, "vit": _vit}[name]
    return build(config.model, data)


def find_loss(config: Config, data: Data) -> Callable[[Any, Any], Any] | None:
    """Return the loss: the user's, or the data's own."""
    return data.loss if config.model.loss is None else find_function(config.model.loss)


def _check(config: ModelConfig, data: Data) -> None:
    facts, kind = NEEDS[config.name]
    if missing := [fact for fact in facts if fact not in data.facts]:
        msg = (
            f"model.name is {config.name!r}, which is for {kind}; the data do not say their "
            f"{', '.join(missing)}"
        )
        raise ValueError(msg)
    if config.width % config.heads:
        msg = (
            f"model.width is {config.width}, which model.heads = {config.heads} do not share "
            f"evenly; take a multiple, such as {config.heads * -(-config.width // config.heads)}"
        )
        raise ValueError(msg)
    if config.name == "vit" and data.facts["size"] % config.patch:
        msg = f"model.patch is {config.patch}; images are {data.facts['size']} pixels wide"
        raise ValueError(msg)


def _gpt(config: ModelConfig, data: Data) -> nn.Module:
    model = load_example("gpt").GPT(
        vocab=data.facts["vocab"],
        seq=data.facts["seq"],
        width=config.width,
        num_blocks=config.blocks,
        num_heads=config.heads,
        tied=config.tied,
        dropout=config.dropout,
    )
    return cast("nn.Module", model)


def _vit(config: ModelConfig, data: Data) -> nn.Module:
    model = load_example("vit").ViT(
        size=data.facts["size"],
        channels=data.facts["channels"],
        num_classes=data.facts["classes"],
        width=config.width,
        num_blocks=config.blocks,
        num_heads=config.heads,
        patch=config.patch,
        dropout=config.dropout,
    )
    return cast("nn.Module", model)


def _own(config: ModelConfig, data: Data) -> nn.Module:
    arguments = dict(config.arguments or {})
    if takes(config.name, "data"):
        arguments["data"] = data
    model = call_as_configured(config.name, "model.arguments", **arguments)
    if not isinstance(model, nn.Module):
        msg = f"{config.name} returned a {type(model).__name__}; expected an nn.Module"
        raise TypeError(msg)
    return model
