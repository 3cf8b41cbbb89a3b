"""Fill a model's tensors by its own initialisers, alike on any number of ranks.

[Note: draws of initialisers] Every random operation of an initialiser draws from a generator seeded
with (seed, module name, number of the draw). So a process that holds a part of the model, with the
rest on ``meta``, gets for its part the values that a process with all of it gets: drawing for
``meta`` changes nothing for those who come after.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import random
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from intandem.checkpoint.tensors import registered
from intandem.errors import CaptureError
from intandem.pipeline.tensors import storage_key
from intandem.recorder.trees import leaves
from intandem.runtime.randomness import default_generators_held

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from intandem.pipeline.tensors import Allocated

_RESETS = ("reset_parameters", "_reset_parameters")
_BUFFER_RESETS = ("reset_buffers", "_reset_buffers", "init_buffers", "_init_buffers")
_PER_MODULE = ("_init_weights", "init_weights")
_MODULE_ARGUMENTS = {"m", "mod", "module", "layer", "submodule"}


def initialise(model: nn.Module, names: Collection[str], seed: int) -> set[int]:
    """Run the initialisers of every module that the named tensors are in, children first.

    First what modules do for themselves (``reset_parameters()``), as their constructors would;
    then ``_init_weights(module)`` of the nearest module around each that has it, as ``apply``
    would.

    Args:
        model: filled in place; tensors on ``meta`` stay there.
        names: first names of the tensors to fill.
        seed: keys the draws.

    Returns:
        What was written to; see ``refuse_unset``.
    """
    wanted = [one.tensor for name, one in registered(model).items() if name in set(names)]
    visited = list(_around(model, {id(tensor) for tensor in wanted}))
    with _held_draws(_device_of(wanted)) as draws:
        for name, module in visited:
            for method in (*_RESETS, *_BUFFER_RESETS):
                reset = getattr(module, method, None)
                if reset is not None and _takes_nothing(reset):
                    draws.run(seed, name, method, reset)
        initialiser_of = _initialisers(model)
        for name, module in visited:
            if (fill := initialiser_of[module]) is not None:
                draws.run(seed, name, "_init_weights", functools.partial(fill, module))
    return draws.written


def fill_by_function(
    model: nn.Module, names: Collection[str], seed: int, function: Callable[[str, nn.Module], None]
) -> set[int]:
    """Call ``function(name, module)`` for every module that has one of the named tensors itself.

    Returns:
        What was written to; see ``refuse_unset``.

    Raises:
        CaptureError: if it raises, or puts data where another rank's tensor is.
    """
    wanted = [one.tensor for name, one in registered(model).items() if name in set(names)]
    own = {id(tensor) for tensor in wanted}
    with _held_draws(_device_of(wanted)) as draws:
        for name, module in model.named_modules():
            tensors = _own_tensors(module)
            if any(id(tensor) in own for tensor in tensors.values()):
                empty = [key for key, tensor in tensors.items() if tensor.is_meta]
                draws.run(seed, name, "weights", functools.partial(function, name, module))
                _refuse_put_data(name, module, empty)
    return draws.written


def refuse_unset(
    model: nn.Module, new: Mapping[str, Allocated], written: set[int], remedy: str
) -> None:
    """Refuse new tensors that nobody has filled.

    Args:
        model: whose tensors have been filled.
        new: tensors that were allocated, by first name.
        written: what was written to since.
        remedy: ends the message.

    Raises:
        CaptureError: naming every module and its tensors.
    """
    unset: dict[str, list[str]] = {}
    for name in find_unset(model, new, written):
        path, _, key = name.rpartition(".")
        unset.setdefault(path, []).append(key)
    if unset:
        found = [
            f"{', '.join(keys)} of {path or 'the model'} ({_kind(model, path)})"
            for path, keys in unset.items()
        ]
        more = f" and of {len(found) - 8} modules more" if len(found) > 8 else ""
        msg = f"nothing gives a value to {'; '.join(found[:8])}{more}; {remedy}"
        raise CaptureError(msg)


def find_unset(model: nn.Module, new: Mapping[str, Allocated], written: set[int]) -> list[str]:
    """Return the names of new tensors that nobody has written to, or not everywhere."""
    tensors = [(name, made, _tensor(model, name)) for name, made in new.items()]
    return [n for n, made, now in tensors if made.is_unset(now, written) or _has_nan(now)]


def _tensor(model: nn.Module, name: str) -> Tensor:
    path, _, key = name.rpartition(".")
    found: Tensor = getattr(model.get_submodule(path), key)
    return found


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """See [Note: draws of initialisers]."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.written: set[int] = set()
        self._key = ""
        self._number = 0

    def run(self, seed: int, name: str, what: str, call: Callable[[], object]) -> None:
        self._key, self._number = f"{seed}/{name}/{what}", 0
        _seed_python(_hashed(self._key))
        try:
            with self:
                call()
        except Exception as error:
            msg = (
                f"{what} of {name or 'the model'} raised {type(error).__name__} while it was "
                f"given its values: {error}; it must fill the module's tensors in place, and "
                "leave those on the meta device alone"
            )
            raise CaptureError(msg) from error

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        self.written.update(storage_key(tensor) for tensor in _written(func, args, kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags:
            torch.manual_seed(_hashed(f"{self._key}/{self._number}"))
            self._number += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def _held_draws(device: torch.device) -> Iterator[_Draws]:
    """Yield what keys draws; torch's, Python's and NumPy's generators are put back afterwards."""
    numpy = sys.modules.get("numpy")
    python, arrays = random.getstate(), numpy.random.get_state() if numpy else None
    try:
        with default_generators_held(), torch.no_grad(), torch.device(device):
            yield _Draws()
    finally:
        random.setstate(python)
        if numpy:
            numpy.random.set_state(arrays)


def _seed_python(key: int) -> None:
    random.seed(key)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(key % 2**32)


def _hashed(text: str) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _device_of(tensors: Collection[Tensor]) -> torch.device:
    return next((t.device for t in tensors if not t.is_meta), torch.device("cpu"))


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    tensors = {**module._parameters, **module._buffers}
    return {key: tensor for key, tensor in tensors.items() if tensor is not None}


def _kind(model: nn.Module, path: str) -> str:
    return type(model.get_submodule(path)).__name__


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Yield the arguments that an operation writes to."""
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[index] if index < len(args) else kwargs.get(argument.name)
            yield from (t for t in leaves(given) if isinstance(t, Tensor))


def _around(model: nn.Module, wanted: set[int]) -> Iterator[tuple[str, nn.Module]]:
    """Yield modules that have a wanted tensor in them, children before their parents."""
    name_of = {module: name for name, module in model.named_modules()}
    done: dict[nn.Module, bool] = {}

    def visit(module: nn.Module) -> Iterator[nn.Module]:
        done[module] = False
        for child in module.children():
            if child not in done:
                yield from visit(child)
        own = any(id(tensor) in wanted for tensor in _own_tensors(module).values())
        done[module] = own or any(done[child] for child in module.children())
        if done[module]:
            yield module

    for module in visit(model):
        yield name_of[module], module


def _initialisers(model: nn.Module) -> dict[nn.Module, Callable[[nn.Module], object] | None]:
    """Return for each module the ``_init_weights`` of the nearest module around it, or its own."""
    found: dict[nn.Module, Callable[[nn.Module], object] | None] = {}

    def visit(module: nn.Module, around: Callable[[nn.Module], object] | None) -> None:
        own = (getattr(module, method, None) for method in _PER_MODULE)
        found[module] = next((bound for bound in own if _takes_module(bound)), around)
        for child in module.children():
            if child not in found:
                visit(child, found[module])

    visit(model, None)
    return found


def _required(method: Callable[..., object]) -> list[inspect.Parameter]:
    several = {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
    parameters = inspect.signature(method).parameters.values()
    return [p for p in parameters if p.default is p.empty and p.kind not in several]


def _takes_nothing(method: Any) -> bool:
    return callable(method) and not _required(method)


def _takes_module(method: Any) -> bool:
    """Tell whether ``method`` fills one module; others of the name take a scale, or nothing."""
    required = _required(method) if callable(method) else []
    if len(required) != 1:
        return False
    return required[0].name in _MODULE_ARGUMENTS or "Module" in str(required[0].annotation)


def _has_nan(tensor: Tensor) -> bool:
    if tensor.is_meta or not (tensor.is_floating_point() or tensor.is_complex()):
        return False
    return bool(tensor.detach().isnan().any())


def _refuse_put_data(name: str, module: nn.Module, empty: Collection[str]) -> None:
    tensors = _own_tensors(module)
    for key in empty:
        if key not in tensors or not tensors[key].is_meta:
            msg = (
                f"weights(name, module) replaced {name}.{key}, which this process does not hold; "
                "write in place (.copy_), which does nothing to tensors on the meta device"
            )
            raise CaptureError(msg)
