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
    from collections.abc import Callable, Collection, Iterator


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
def intercepted(
    blocks: Collection[nn.Module], listener: Listener, others: Collection[nn.Module] = ()
) -> Iterator[None]:
    """Tell ``listener`` of every call this thread makes while the context is open.

    Args:
        blocks: modules whose classes may have a ``__call__`` of their own.
        listener: told of the calls.
        others: modules that it is to be told of as well, even if they are compiled.
    """
    methods = _methods(blocks, others)
    thread = threading.get_ident()
    originals = [vars(owner)[name] for owner, name in methods]
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

    for (owner, name), original in zip(methods, originals, strict=True):
        setattr(owner, name, wrap(original))
    Function.apply = classmethod(apply)  # type: ignore[assignment,method-assign]
    try:
        # compiled blocks run as they are written: a compiler would trace into the listener
        with torch.compiler.set_stance("force_eager"), _Mode(listener):
            yield
    finally:
        for (owner, name), original in zip(methods, originals, strict=True):
            setattr(owner, name, original)
        Function.apply = original_apply  # type: ignore[method-assign]


def _methods(blocks: Collection[nn.Module], others: Collection[nn.Module]) -> list[tuple[Any, str]]:
    """Return the classes and the methods of theirs that calls of modules go through.

    To replace ``nn.Module.__call__`` takes milliseconds, as Python tells all classes below it; what
    it calls, unless a module is compiled, can be replaced at once.
    """
    owners = {
        owner
        for kind in set(map(type, blocks))
        for owner in kind.__mro__
        if "__call__" in vars(owner) and owner not in {object, nn.Module}
    }
    is_compiled = any("_compiled_call_impl" in vars(module) for module in (*blocks, *others))
    of_all = "__call__" if is_compiled else "_call_impl"
    return [(nn.Module, of_all), *((owner, "__call__") for owner in owners)]
