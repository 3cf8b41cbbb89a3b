"""Random draws keyed by where they happen in the model, not by when or on which rank.

[Note: own generators] The CPU's default generator belongs to the process: seeding it from two
threads gives wrong draws. So random functions get a generator of their own; a function that cannot
take one runs under one process-wide lock with the default generator's state exchanged, which gives
the draws it would have given from that generator.

[Note: draws of a recomputation] ``torch.utils.checkpoint`` runs code again in backward, where no
mode of ours is entered, with the default generators' states put back. Such code draws from the
default generators in the first place, under the lock, and so does the backward it is part of.
"""

from __future__ import annotations

import hashlib
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from intandem.recorder.functions import function_name, is_random
from intandem.recorder.python_state import python_generators_kept, seed_python_generators
from intandem.recorder.trees import leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from intandem.recorder import Site

_TAKES_GENERATOR = frozenset(
    "bernoulli bernoulli_ rand randn randint randperm normal normal_ uniform_ random_ "
    "exponential_ cauchy_ geometric_ log_normal_ multinomial poisson".split()
)
_DEFAULT_GENERATOR_LOCK = threading.Lock()
_PYTHON_GENERATORS_LOCK = threading.Lock()


def draw_key(seed: int, step: int, microbatch: int, site: Site) -> int:
    """Return the generator seed for one call of one site, the same on every rank and machine.

    Args:
        seed: of the run.
        step: number of the training step.
        microbatch: index in the whole batch.
        site: block or glue call, by names that do not depend on the cut.
    """
    text = f"{seed}/{step}/{microbatch}/{site.name}/{site.call}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class KeyedRandom(TorchFunctionMode):
    """While entered, random functions draw from generators seeded with one key.

    Args:
        key: from ``draw_key``.
    """

    def __init__(self, key: int) -> None:
        super().__init__()
        self._key = key
        self._generators: dict[torch.device, torch.Generator] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if not is_random(func, args, kwargs):
            return func(*args, **kwargs)
        generator = self._generator(_device_of(args, kwargs))
        if _is_plain_dropout(func, args, kwargs):
            return _dropout(args[0], _probability(args, kwargs), generator)
        if function_name(func) in _TAKES_GENERATOR and kwargs.get("generator") is None:
            return func(*args, **{**kwargs, "generator": generator})
        return _with_default_generator(generator, lambda: func(*args, **kwargs))

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._key)
        return self._generators[device]


class EqualDraws:
    """Draws of a recording that is not run: all uniform numbers are one and the same.

    Args:
        value: between 0 and 1. What is dropped with a probability is kept by a value near 0, or
            by one near 1.
    """

    def __init__(self, value: float) -> None:
        self._value = value

    def random(self, site: Site) -> TorchFunctionMode:
        """Return the context under which uniform numbers are that value."""
        del site
        return _EqualRandom(self._value)

    def seed_python(self, number: int) -> bool:
        """Change nothing."""
        del number
        return False


class _EqualRandom(TorchFunctionMode):
    def __init__(self, value: float) -> None:
        super().__init__()
        self._value = value

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        drawn = func(*args, **(kwargs or {}))
        return drawn.fill_(self._value) if function_name(func) in {"rand", "rand_like"} else drawn


@contextmanager
def default_generators_seeded(key: int) -> Iterator[None]:
    """Let this thread alone draw from the default generators, seeded with ``key``.

    See [Note: draws of a recomputation].
    """
    with default_generators_held():
        torch.manual_seed(key)
        yield


@contextmanager
def default_generators_held() -> Iterator[None]:
    """Keep other ranks' threads from drawing from the default generators; put their states back."""
    devices = range(torch.cuda.device_count())
    with _DEFAULT_GENERATOR_LOCK, torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def python_generators_seeded(key: int) -> Iterator[None]:
    """Let this thread alone draw from Python's and NumPy's generators, seeded with ``key``."""
    with _PYTHON_GENERATORS_LOCK, python_generators_kept():
        seed_python_generators(key)
        yield


def _device_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device:
    if (device := kwargs.get("device")) is not None:
        return torch.device(device)
    tensors = (leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor))
    return next((t.device for t in tensors), torch.get_default_device())


def _is_plain_dropout(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bool:
    """Tell whether it is the common case whose formula is written out in ``_dropout``."""
    if function_name(function) != "dropout" or not args or kwargs.get("inplace"):
        return False
    if len(args) > 3 and args[3]:
        return False
    tensor = args[0]
    return tensor.device.type == "cpu" and tensor.numel() > 0 and _probability(args, kwargs) < 1


def _probability(args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    return float(args[1] if len(args) > 1 else kwargs.get("p", 0.5))


def _dropout(tensor: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """What ``torch.dropout`` computes on a CPU, with the noise drawn from ``generator``."""
    noise = torch.empty_like(tensor, requires_grad=False)
    return tensor * noise.bernoulli_(1 - p, generator=generator).div_(1 - p)


def _with_default_generator(generator: torch.Generator, call: Callable[[], Any]) -> Any:
    """[Note: own generators]."""
    default = _default_generator(generator.device)
    with _DEFAULT_GENERATOR_LOCK:
        before = default.get_state()
        default.set_state(generator.get_state())
        try:
            return call()
        finally:
            generator.set_state(default.get_state())
            default.set_state(before)


def _default_generator(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        return torch.cuda.default_generators[index]
    return torch.default_generator
