"""Stages that a user wrote by hand, as one module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence


class StageChain(nn.Module):
    """Calls stages one after the other; each is kept whole, and given what the one before returned.

    A tensor is one argument, a tuple gives positional arguments, a dictionary keyword arguments;
    anything else is one argument. Names of parameters begin with the number of their stage.

    Args:
        stages: in order. The first is given what the batch is bound to.
    """

    def __init__(self, stages: list[nn.Module] | tuple[nn.Module, ...]) -> None:
        super().__init__()
        self.num_stages = len(stages)
        for number, stage in enumerate(stages):
            self.add_module(str(number), stage)

    @property
    def first(self) -> nn.Module:
        """The stage that is given the batch."""
        return self.get_submodule("0")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the last stage returns."""
        value = self.first(*args, **kwargs)
        for number in range(1, self.num_stages):
            stage = self.get_submodule(str(number))
            if isinstance(value, Mapping):
                value = stage(**value)
            elif isinstance(value, tuple):
                value = stage(*value)
            else:
                value = stage(value)
        return value


def as_module(model: nn.Module | Sequence[nn.Module]) -> nn.Module:
    """Return ``model``, or the chain of the stages that it lists.

    Raises:
        TypeError: if a stage is no module.
        ValueError: if there are none.
    """
    if isinstance(model, nn.Module) or not isinstance(model, list | tuple):
        return model  # type: ignore[return-value]  # what is no module is refused by the caller
    if not model:
        msg = "model is an empty list; expected an nn.Module, or a list of stages"
        raise ValueError(msg)
    for number, stage in enumerate(model):
        if not isinstance(stage, nn.Module):
            msg = f"stage {number} of model is a {type(stage).__name__}; expected an nn.Module"
            raise TypeError(msg)
    return StageChain(model)


def entry_of(model: nn.Module) -> nn.Module:
    """Return the module whose ``forward`` takes the batch."""
    return model.first if isinstance(model, StageChain) else model
