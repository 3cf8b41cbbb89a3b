"""Give a model its data, each process only what it holds.

Buffers come first, on every rank, before the model is recorded, so that what they decide is known;
parameters come once it is known which rank runs what.
"""

from __future__ import annotations

import logging
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from torch import nn

from intandem.checkpoint.tensors import registered
from intandem.checkpoint.weight_files import WeightFiles
from intandem.errors import CaptureError
from intandem.pipeline.home import has_room_for, place
from intandem.pipeline.initialise import (
    fill_by_function,
    find_unset,
    initialise,
    refuse_unset,
)
from intandem.pipeline.tensors import Allocated, allocate, refuse_loose

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    import torch

    from intandem.pipeline.home import Home
    from intandem.pipeline.request import Request

    Weights = str | Path | Callable[[str, nn.Module], None]

_log = logging.getLogger(__name__)

INIT = "init"
FUNCTION = "function"
_CHOICES = (
    "weights='path/of/a/folder' (safetensors), weights='init' (the model's own initialisers), or "
    "weights=function(name, module)"
)


class Source(Protocol):
    """Where the values of a model's tensors come from."""

    @property
    def kind(self) -> str:
        """What all ranks must have alike."""
        ...

    def fill(self, model: nn.Module, names: Collection[str], new: Mapping[str, Allocated]) -> None:
        """Fill parameters and persistent buffers in place.

        Args:
            model: whose tensors they are.
            names: their first names.
            new: those of them that hold nothing yet.
        """
        ...


class _FromFiles:
    kind = "files"

    def __init__(self, path: Path, model: nn.Module) -> None:
        self._files = WeightFiles(path, model)

    def fill(self, model: nn.Module, names: Collection[str], new: Mapping[str, Allocated]) -> None:
        del new
        if names:
            self._files.fill(model, names)


class _Initialisers:
    kind = INIT

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def fill(self, model: nn.Module, names: Collection[str], new: Mapping[str, Allocated]) -> None:
        written = initialise(model, names, self._seed)
        remedy = (
            "give the module a reset_parameters() that fills them, let the model's "
            "_init_weights(module) do it, or use weights=function(name, module)"
        )
        refuse_unset(model, new, written, remedy)


class _Function:
    kind = FUNCTION

    def __init__(self, function: Callable[[str, nn.Module], None], seed: int) -> None:
        self._function = function
        self._seed = seed

    def fill(self, model: nn.Module, names: Collection[str], new: Mapping[str, Allocated]) -> None:
        written = fill_by_function(model, names, self._seed, self._function)
        refuse_unset(model, new, written, "let weights(name, module) fill them in place")


def find_source(weights: Weights | None, model: nn.Module, seed: int) -> Source | None:
    """Return where a model's values come from; None where it keeps what it has.

    Raises:
        CaptureError: if the model has tensors without data and ``weights`` is None.
        ValueError: if there are no such files, or they are not the model's.
        TypeError: if ``weights`` is of another type.
    """
    if weights is None:
        refuse_meta(model)
        return None
    refuse_loose(model)
    if weights == INIT:
        return _Initialisers(seed)
    if isinstance(weights, str | Path):
        return _FromFiles(Path(weights), model)
    if callable(weights) and not isinstance(weights, nn.Module):
        return _Function(weights, seed)
    msg = f"weights is a {type(weights).__name__}; expected {_CHOICES}"
    raise TypeError(msg)


def refuse_meta(model: nn.Module) -> None:
    """Refuse a model without data.

    Raises:
        CaptureError: naming a tensor and the ways to give it data.
    """
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_meta:
            msg = (
                f"{name} is on the meta device, without data; say where its values come from: "
                f"Pipeline(..., {_CHOICES}), or build the model on cpu"
            )
            raise CaptureError(msg)


def give_data(request: Request, home: Home) -> tuple[torch.device | None, Source | None]:
    """Fill what can be filled before the model is recorded: buffers; all, where all ranks are here.

    Returns:
        The device to move batches to before they are recorded (None: they stay where they are): a
        process's own where the whole model has room there, so that what is recorded and measured
        is what its stages will do;
        and what has parameters to fill once it is known who holds them (None: they are filled).
    """
    model, seed = request.model, request.options.seed
    source = find_source(request.weights, model, seed)
    is_local = home.membership is None
    lacks_some = lacks_parameters(model)
    if is_placed := is_local or (not lacks_some and has_room_for(model, home.device)):
        place(model, home.device)
    here = home.device if is_placed or lacks_some else _device_of(model)
    if source is None:
        return here, None
    materialise_buffers(model, source, seed, home.device)
    if not is_local:
        return here, source
    materialise_parameters(model, source, [n for n, _ in model.named_parameters()], home.device)
    return here, None


def _device_of(model: nn.Module) -> torch.device | None:
    return next((parameter.device for parameter in model.parameters()), None)


def lacks_parameters(model: nn.Module) -> bool:
    """Tell whether any parameter is on ``meta``."""
    return any(parameter.is_meta for parameter in model.parameters())


def materialise_buffers(model: nn.Module, source: Source, seed: int, device: torch.device) -> None:
    """Fill all buffers. Those outside the state that are on ``meta`` are made by initialisers.

    Raises:
        CaptureError: naming buffers that nothing gives a value to.
        ValueError: if the files' shapes are not the model's.
    """
    buffers = {n: one for n, one in registered(model).items() if not one.is_parameter}
    new = allocate(model, buffers, device)
    tables = {name: made for name, made in new.items() if not buffers[name].persistent}
    by_source = {name for name, one in buffers.items() if one.persistent}
    if tables:
        written = initialise(model, tables, seed)
        if source.kind == FUNCTION:
            by_source |= set(find_unset(model, tables, written))
        others = {name: made for name, made in tables.items() if name not in by_source}
        remedy = (
            "they are no part of the model's state (persistent=False): give the module a "
            "reset_parameters() that fills them in place, or use weights=function(name, module)"
        )
        refuse_unset(model, others, written, remedy)
    source.fill(model, by_source, {name: made for name, made in new.items() if name in by_source})


def materialise_parameters(
    model: nn.Module, source: Source, names: Collection[str], device: torch.device
) -> None:
    """Fill the named parameters, and no others.

    Raises:
        CaptureError: naming parameters that nothing gives a value to.
        ValueError: if the files' shapes are not the model's.
    """
    own = registered(model)
    held = [name for name in own if name in set(names) and own[name].is_parameter]
    new = allocate(model, held, device)
    refuse_loose(model)
    source.fill(model, held, new)
    num_bytes = sum(made.tensor.numel() * made.tensor.element_size() for made in new.values())
    _log.info("materialised %d of %d tensors, %d bytes", len(new), len(own), num_bytes)
