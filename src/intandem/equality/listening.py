"""Watching the plain model: what its blocks and the glue between them return."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from intandem.equality.trace import Key, Result, Trace, copies
from intandem.recorder.blocks import find_blocks
from intandem.recorder.functions import function_name, is_metadata, is_random
from intandem.recorder.interception import intercepted
from intandem.recorder.locations import user_location
from intandem.recorder.python_state import python_generators_state
from intandem.recorder.trees import leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import nn
    from torch.autograd import Function


LOSS = Key("the loss", "the loss", 0)
"""Stands for the loss among what draws."""


class PlainTrace(Trace):
    """Fills itself while ``one_process`` runs a model.

    Args:
        blocks: modules kept whole besides those found.
    """

    def __init__(self, blocks: Sequence[str | type[nn.Module]] = ()) -> None:
        super().__init__()
        self._blocks = blocks
        self._done: set[int] = set()

    @contextmanager
    def watching(self, model: nn.Module, microbatch: int) -> Iterator[None]:
        """See one call of the model; a second one of the same micro-batch is not looked at."""
        listener = _Listener(self, model, microbatch, find_blocks(model, self._blocks))
        is_first = microbatch not in self._done
        self._done.add(microbatch)
        with intercepted(listener.blocks, listener) if is_first else nullcontext():
            yield


class Precision(TorchFunctionMode):
    """Sees where the plain model or its loss computes in a lower precision than the model's own.

    Args:
        model: its parameters have its own precision.

    Attributes:
        lowered: the function and line that computes in the lowest; empty if none does.
        lowest: the machine epsilon there.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        own = (torch.finfo(p.dtype).eps for p in model.parameters() if p.is_floating_point())
        self._own = min(own, default=torch.finfo(torch.float64).eps)
        self.lowered = ""
        self.lowest = 0.0

    def watching(self, model: nn.Module, microbatch: int) -> Precision:
        """Return the context in which this looks on."""
        del model, microbatch
        return self

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunction():
            for leaf in [result] if isinstance(result, Tensor) else leaves(result):
                if isinstance(leaf, Tensor) and leaf.is_floating_point():
                    self._note(func, leaf.dtype)
        return result

    def _note(self, function: Any, dtype: torch.dtype) -> None:
        epsilon = torch.finfo(dtype).eps
        if epsilon > max(self._own, self.lowest):
            self.lowest = epsilon
            kind = str(dtype).removeprefix("torch.")
            self.lowered = f"{function_name(function)} at {user_location()} gives {kind}"


class _Listener:
    """One forward of one micro-batch."""

    def __init__(
        self, trace: Trace, model: nn.Module, microbatch: int, blocks: dict[nn.Module, str]
    ) -> None:
        self.blocks = blocks
        self._trace = trace
        self._model = model
        self._microbatch = microbatch
        self._calls: Counter[tuple[str, str]] = Counter()
        self._in_model = False
        self._inside: Key | None = None

    def on_module(
        self, module: nn.Module, proceed: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        """Keep what an outermost block returns."""
        if module is self._model and not self._in_model:
            self._in_model = True
            try:
                return proceed(*args, **kwargs)
            finally:
                self._in_model = False
        if not self._in_model or self._inside is not None or module not in self.blocks:
            return proceed(*args, **kwargs)
        return self._whole(self.blocks[module], "", proceed, args, kwargs)

    def on_autograd_function(
        self,
        function: type[Function],
        proceed: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Any,
    ) -> Any:
        """Keep what a function with its own autograd returns."""
        if not self._in_model or self._inside is not None:
            return proceed(*args, **kwargs)
        return self._whole(function.__name__, user_location(), proceed, args, kwargs)

    def on_torch_function(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Keep what glue returns; inside a block, only see whether it draws."""
        with torch._C.DisableTorchFunction():
            draws = is_random(function, args, kwargs)
        if self._inside is not None or not self._in_model:
            if draws:
                self._trace.drawing.add(self._inside or LOSS)
            result = function(*args, **kwargs)
            with torch._C.DisableTorchFunction():
                self._note_dtype(result)
            return result
        result = function(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            self._note_dtype(result)
            if not is_metadata(function) and any(isinstance(x, Tensor) for x in leaves(result)):
                key = self._key(function_name(function), user_location())
                if draws:
                    self._trace.drawing.add(key)
                self._keep(key, result)
        return result

    def _whole(
        self,
        name: str,
        location: str,
        proceed: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Any,
    ) -> Any:
        self._inside = key = self._key(name, location)
        generators = python_generators_state()
        try:
            result = proceed(*args, **kwargs)
        finally:
            self._inside = None
        if python_generators_state() != generators:
            self._trace.drawing.add(key)
        with torch._C.DisableTorchFunction():
            self._keep(key, result)
        return result

    def _key(self, name: str, location: str) -> Key:
        number = self._calls[name, location]
        self._calls[name, location] += 1
        return Key(name, location, number)

    def _note_dtype(self, result: Any) -> None:
        for leaf in [result] if isinstance(result, Tensor) else leaves(result):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                self._trace.dtypes.add(leaf.dtype)

    def _keep(self, key: Key, result: Any) -> None:
        self._trace.add(key, self._microbatch, Result(copies(result)))
