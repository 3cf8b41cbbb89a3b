"""One call while it is being recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from intandem.recorder.graph import Autocast, CallKind


class Target(NamedTuple):
    """What is about to be called: its kind, name, function, and the module if it is a block."""

    kind: CallKind
    name: str
    function: Callable[..., Any] | None
    module: nn.Module | None
    proceed: Callable[..., Any]


class Seen(NamedTuple):
    """What a call was given, and what it did besides returning something."""

    template: tuple[Any, Any]
    given: list[Tensor]
    written: list[Tensor]
    autocast: tuple[Autocast, ...]
    drew: bool
    drew_python: bool
