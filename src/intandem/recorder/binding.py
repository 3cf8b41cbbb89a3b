"""How a batch becomes the arguments of ``forward``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from intandem.errors import BatchError
from intandem.recorder.stage_chain import entry_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn


@dataclass(frozen=True, slots=True)
class Arguments:
    """Positional and keyword arguments of one call of ``forward``."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def missing_arguments(model: nn.Module, arguments: Arguments) -> str:
    """Say which arguments of ``forward`` a batch does not give, and what to do; or nothing."""
    try:
        signature = inspect.signature(entry_of(model).forward)
        given = signature.bind_partial(*arguments.args, **arguments.kwargs).arguments
    except (TypeError, ValueError):
        return ""
    names = [
        name
        for name, p in signature.parameters.items()
        if p.default is p.empty and p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}
    ]
    missing = ", ".join(repr(name) for name in names if name not in given)
    if not missing:
        return ""
    what = ", ".join(given) or "nothing for forward"
    return f"the batch has {what}; add {missing} to it, or give inputs="


def bind_by_signature(model: nn.Module, *, loss_is_separate: bool) -> Callable[[Any], Arguments]:
    """Return the rule that turns a batch of ``model`` into its arguments.

    * a tensor is the first argument;
    * a dictionary gives keyword arguments, less the keys that ``forward`` does not take (those
      are for the loss);
    * a tuple or list gives positional arguments: with a separate loss function only as many as
      ``forward`` requires (the rest, such as targets, are for the loss), else all.

    Args:
        model: its ``forward`` is inspected.
        loss_is_separate: whether a loss function is given.
    """
    forward = entry_of(model).forward
    parameters = [p for p in inspect.signature(forward).parameters.values() if p.name != "self"]
    takes_any_key = any(p.kind is p.VAR_KEYWORD for p in parameters)
    by_name = {p.name for p in parameters if p.kind in {p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY}}
    positional = [p for p in parameters if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}]
    takes_any_number = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    num_required = sum(1 for p in positional if p.default is p.empty)

    def bind(batch: Any) -> Arguments:
        if isinstance(batch, Mapping):
            kept = {k: v for k, v in batch.items() if takes_any_key or k in by_name}
            if not kept:
                msg = (
                    f"the batch has keys {sorted(map(str, batch))}, and forward of "
                    f"{type(model).__name__} takes {sorted(by_name)}; rename the keys"
                )
                raise BatchError(msg)
            return Arguments((), kept)
        if isinstance(batch, list | tuple):
            if loss_is_separate and not takes_any_number:
                return Arguments(tuple(batch[: max(num_required, 1)]), {})
            return Arguments(tuple(batch), {})
        return Arguments((batch,), {})

    return bind
