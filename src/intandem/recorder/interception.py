"""Seeing every module call, ``autograd.Function`` and torch function of one thread."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


class Listener(Protocol):
    """Is told of each call and decides what to do instead. ``proceed`` makes the call itself."""

    def on_module(
        self, module: nn.Module, proceed: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        """``module(*args, **kwargs)`` is being called."""
        ...

    def on_autograd_function(
        self,
        function: type[Function],
        proceed: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Any,
    ) -> Any:
        """``function.apply(*args, **kwargs)`` is being called."""
        ...

    def on_torch_function(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A torch function is being called."""
        ...


class _Mode(TorchFunctionMode):
    def __init__(self, listener: Listener) -> None:
        super().__init__()
        self._listener = listener

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        return self._listener.on_torch_function(func, args, kwargs or {})


@contextmanager
def intercepted(modules: Iterable[nn.Module], listener: Listener) -> Iterator[None]:
    """Tell ``listener`` of every call this thread makes while the context is open.

    Args:
        modules: those whose classes may have a ``__call__`` of their own.
        listener: told of the calls.
    """
    owners: set[Any] = {nn.Module}
    for module in modules:
        owners |= {c for c in type(module).__mro__ if "__call__" in vars(c) and c is not object}
    thread = threading.get_ident()
    originals: dict[Any, Any] = {owner: vars(owner)["__call__"] for owner in owners}
    original_apply = vars(Function)["apply"]

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            def proceed(*a: Any, **k: Any) -> Any:
                return original(module, *a, **k)

            if threading.get_ident() != thread:
                return proceed(*args, **kwargs)
            return listener.on_module(module, proceed, args, kwargs)

        return call

    def apply(function: type[Function], *args: Any, **kwargs: Any) -> Any:
        proceed = original_apply.__get__(None, function)
        if threading.get_ident() != thread:
            return proceed(*args, **kwargs)
        return listener.on_autograd_function(function, proceed, args, kwargs)

    for owner in owners:
        owner.__call__ = wrap(originals[owner])
    Function.apply = classmethod(apply)  # type: ignore[assignment,method-assign]
    try:
        # compiled blocks run as they are written: a compiler would trace into the listener
        with torch.compiler.set_stance("force_eager"), _Mode(listener):
            yield
    finally:
        for owner in owners:
            owner.__call__ = originals[owner]
        Function.apply = original_apply  # type: ignore[method-assign]
