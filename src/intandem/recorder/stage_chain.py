"""Stages that a user wrote by hand, as one module."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from intandem.errors import CaptureError

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
            given, named = _arguments(value)
            try:
                value = stage(*given, **named)
            except TypeError as error:
                if misfit := _misfit(stage, given, named):
                    msg = f"stage {number} ({type(stage).__name__}) {misfit}; "
                    msg += f"stage {number - 1} returned {_named(given, named)}, and what a stage "
                    msg += "returns has to be what the next one takes"
                    raise CaptureError(msg) from error
                raise
        return value


def _arguments(value: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Return the positional and keyword arguments that a stage's output is for the next one."""
    if isinstance(value, Mapping):
        return (), value
    return (value, {}) if isinstance(value, tuple) else ((value,), {})


def _misfit(stage: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Say what of a stage's arguments its ``forward`` does not take or lacks; or nothing."""
    signature = inspect.signature(stage.forward)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        unknown = [str(name) for name in kwargs if name not in signature.parameters]
        if unknown:
            return f"was given {', '.join(unknown)}, which its forward does not take"
        return f"was given {_named(args, kwargs)}, which its forward cannot be called with: {error}"
    return ""


def _named(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Name keyword arguments, or count positional ones."""
    values = "1 value" if len(args) == 1 else f"{len(args)} values"
    return ", ".join(map(str, kwargs)) if kwargs else values


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
