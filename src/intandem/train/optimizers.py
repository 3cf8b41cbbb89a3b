"""The optimizer that a configuration names, with groups of parameters by their names."""

from __future__ import annotations

from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch

from intandem.train.config import NO_DECAY
from intandem.user_code import call_as_configured

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import nn

    from intandem.train.config import GroupConfig, OptimizerConfig

LR_SCALE = "lr_scale"
"""Option of every group: what the learning rate is multiplied by."""


def find_optimizer(
    config: OptimizerConfig, named: Iterable[tuple[str, nn.Parameter]], every: Sequence[str]
) -> torch.optim.Optimizer:
    """Return the optimizer of this process's parameters.

    Args:
        config: of the optimizer.
        named: the parameters that this process holds, by name.
        every: the names of all parameters of the model.

    Raises:
        ValueError: if there is no such optimizer, or a group matches no parameter of the model.
        TypeError: if a function of the user's returns none.
    """
    groups = parameter_groups(config, named, every)
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    if ":" not in config.name:
        msg = f"optimizer.name is {config.name!r}; expected adamw, sgd or module:function"
        raise ValueError(msg)
    given = {"lr": config.lr, **(config.arguments or {})}
    found = call_as_configured(config.name, "optimizer.arguments", groups, **given)
    if not isinstance(found, torch.optim.Optimizer):
        msg = f"{config.name} returned a {type(found).__name__}; expected a torch.optim.Optimizer"
        raise TypeError(msg)
    return found


def parameter_groups(
    config: OptimizerConfig, named: Iterable[tuple[str, nn.Parameter]], every: Sequence[str]
) -> list[dict[str, Any]]:
    """Return a group for each one of the configuration, in its order, and one of the rest.

    Every process has as many, some of them perhaps empty. Frozen parameters are in none.

    Raises:
        ValueError: if a group matches no parameter of the model; not of the default ones.
    """
    if config.groups != NO_DECAY:
        for index, group in enumerate(config.groups):
            _check_matches(f"optimizer.groups[{index}]", group, every)
    found: list[list[nn.Parameter]] = [[] for _ in range(len(config.groups) + 1)]
    for name, parameter in named:
        if parameter.requires_grad:
            found[_group_of(name, config.groups)].append(parameter)
    decays = [
        config.weight_decay if group.weight_decay is None else group.weight_decay
        for group in config.groups
    ]
    scales = [group.lr_scale for group in config.groups]
    return [
        {"params": parameters, "weight_decay": decay, LR_SCALE: scale}
        for parameters, decay, scale in zip(
            found, [*decays, config.weight_decay], [*scales, 1.0], strict=True
        )
    ]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its own share of ``rate``."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(LR_SCALE, 1.0)


def _group_of(name: str, groups: Sequence[GroupConfig]) -> int:
    """Index of the first group that ``name`` belongs to; of the rest if it is in none."""
    matching = (
        index
        for index, group in enumerate(groups)
        if any(fnmatchcase(name, pattern) for pattern in group.match)
    )
    return next(matching, len(groups))


def _check_matches(key: str, group: GroupConfig, every: Sequence[str]) -> None:
    for pattern in group.match:
        if not any(fnmatchcase(name, pattern) for name in every):
            nearest = get_close_matches(pattern, every, n=1, cutoff=0.0)
            near = f"; the nearest name is {nearest[0]!r}" if nearest else ""
            msg = f"{key}.match has {pattern!r}, which no parameter of the model has{near}"
            raise ValueError(msg)
