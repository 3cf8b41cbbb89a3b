"""Python's part of what glue computes with: numbers and flags on modules, and its generators.

A recording holds what glue read when it ran. So plain attributes of modules outside blocks are part
of what a recording is for, and a ``forward`` that changes them between blocks is refused.
"""

from __future__ import annotations

import random
import sys
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from intandem.errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable

PlainState = dict[str, "Hashable"]
"""Plain attributes of modules by their dotted name, such as ``scale`` or ``encoder.tau``."""

_PLAIN = (int, float, complex, bool, str, bytes, type(None), Enum, torch.dtype, torch.device)
_MAX_ITEMS = 64


def plain_state(model: nn.Module, blocks: Collection[nn.Module]) -> PlainState:
    """Return what glue may read on the modules outside ``blocks``, besides registered tensors."""
    found: PlainState = {}
    for name, module in model.named_modules():
        if module in blocks:
            continue
        prefix = f"{name}." if name else ""
        for key, value in vars(module).items():
            plain = _plain(value, depth=2)
            if plain is not _NOT_PLAIN:
                found[prefix + key] = plain
    return found


class AttributesWatched:
    """Attributes of the modules outside blocks, before a recording.

    Args:
        model: the user's module.
        blocks: modules kept whole.
    """

    def __init__(self, model: nn.Module, blocks: Collection[nn.Module]) -> None:
        outside = [(name, m) for name, m in model.named_modules() if m not in blocks]
        self._before = [(name, module, dict(vars(module))) for name, module in outside]
        self._blocks = blocks
        self._model = model
        self._plain = plain_state(model, blocks)

    def put_back(self) -> None:
        """Give the modules the attributes they had, whatever ``forward`` has done to them."""
        for _, module, before in self._before:
            attributes = vars(module)
            for key in [key for key in attributes if key not in before]:
                del attributes[key]
            attributes.update(before)

    def settle(self, is_derived: Callable[[Tensor], bool]) -> None:
        """Refuse what ``forward`` changed, but for caches of what depends on the batch alone.

        Those are made again by each run, and are put back here.

        Args:
            is_derived: tells whether a tensor is such a value.

        Raises:
            CaptureError: naming the attribute.
        """
        after = plain_state(self._model, self._blocks)
        for name, module, before in self._before:
            prefix = f"{name}." if name else ""
            for key, value in list(vars(module).items()):
                dotted = prefix + key
                if dotted not in after or after[dotted] == self._plain.get(dotted):
                    continue
                if not (isinstance(value, Tensor) and is_derived(value)):
                    msg = (
                        f"forward sets {dotted} between blocks, which a recording cannot repeat; "
                        "keep it in a buffer that is written to in place, or set it elsewhere"
                    )
                    raise CaptureError(msg)
                if key in before:
                    vars(module)[key] = before[key]
                else:
                    del vars(module)[key]


class PythonGenerators:
    """Watches Python's and NumPy's random generators for draws between blocks."""

    def __init__(self) -> None:
        self._state = _generator_state()

    def skip(self) -> None:
        """Draws up to now were a block's, which draws again each time it runs."""
        self._state = _generator_state()

    def check(self, location: str) -> None:
        """Refuse draws since the last call of ``skip``.

        Raises:
            CaptureError: if there were any.
        """
        if _generator_state() != self._state:
            msg = (
                f"forward draws from Python's or NumPy's random generator between blocks, before "
                f"{location}; a recording would repeat the first draw for ever: use torch.rand, "
                "or draw outside of forward and pass the result in the batch"
            )
            raise CaptureError(msg)


class _NotPlain:
    pass


_NOT_PLAIN = _NotPlain()


def _plain(value: Any, depth: int) -> Hashable:
    """Return what to compare ``value`` by; unregistered tensors are compared by identity."""
    if isinstance(value, Tensor):
        return ("tensor", id(value))
    if isinstance(value, _PLAIN):
        return (type(value).__name__, value)
    if isinstance(value, list | tuple) and depth and len(value) <= _MAX_ITEMS:
        items = tuple(_plain(item, depth - 1) for item in value)
        return _NOT_PLAIN if _NOT_PLAIN in items else (type(value).__name__, items)
    return _NOT_PLAIN


def _generator_state() -> object:
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return random.getstate()
    kind, keys, *rest = numpy.random.get_state()
    return random.getstate(), kind, keys.tobytes(), *rest
