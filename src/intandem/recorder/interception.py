"""Seeing every module call, ``autograd.Function`` and torch function of one thread."""

from __future__ import annotations

import functools
import threading
from contextlib import ExitStack, contextmanager
from types import FunctionType
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
        self._hear = listener.on_torch_function

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        return self._hear(func, args, kwargs or {})


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
    thread = threading.get_ident()
    original_apply = vars(Function)["apply"]
    told: Listener | None = listener

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread:
                return original(module, *args, **kwargs)
            return listener.on_module(module, functools.partial(original, module), args, kwargs)

        return call

    def apply(function: type[Function], *args: Any, **kwargs: Any) -> Any:
        proceed = original_apply.__get__(None, function)
        if threading.get_ident() != thread or told is None:
            return proceed(*args, **kwargs)
        return told.on_autograd_function(function, proceed, args, kwargs)

    with ExitStack() as replaced:
        for owner, name in _methods(blocks, others):
            replaced.enter_context(_replaced(owner, name, wrap))
        Function.apply = classmethod(apply)  # type: ignore[assignment,method-assign]
        try:
            # compiled blocks run as they are written: a compiler would trace into the listener
            with torch.compiler.set_stance("force_eager"), _Mode(listener):
                yield
        finally:
            Function.apply = original_apply  # type: ignore[method-assign]
            told = None  # what was imported meanwhile may hold on to ``apply``


@contextmanager
def _replaced(
    owner: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Have what ``wrap`` makes of a method called in its place while the context is open.

    [Note: code in place of a method] To set an attribute of ``nn.Module`` takes milliseconds, as
    Python tells all classes below it. So the method stays where it is and is given other code,
    which finds what to call among the defaults of its keywords. Methods that are no plain
    functions, or have closures, which code that takes their place would have to have too, are set.
    """
    method = vars(owner)[name]
    if type(method) is not FunctionType or method.__closure__:
        setattr(owner, name, wrap(method))
        try:
            yield
        finally:
            setattr(owner, name, method)
        return
    code, defaults = method.__code__, method.__kwdefaults__
    original = FunctionType(code, method.__globals__, method.__name__, method.__defaults__)
    original.__kwdefaults__ = defaults
    method.__kwdefaults__ = {**(defaults or {}), "_called_instead": wrap(original)}
    method.__code__ = _calls_another.__code__
    try:
        yield
    finally:
        method.__code__ = code
        method.__kwdefaults__ = defaults


def _calls_another(*args: Any, _called_instead: Callable[..., Any], **kwargs: Any) -> Any:
    return _called_instead(*args, **kwargs)


def _methods(blocks: Collection[nn.Module], others: Collection[nn.Module]) -> list[tuple[Any, str]]:
    """Return the classes and the methods of theirs that calls of modules go through.

    Modules that are not compiled go through ``_call_impl`` as well, which nobody else sets.
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
