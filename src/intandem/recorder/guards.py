"""What a recording depends on besides shapes, and what it cannot hold."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from intandem.recorder import refusals
from intandem.recorder.functions import (
    has_data_dependent_shape,
    packs_by_length,
    selects_by_mask,
    sizes_given,
)
from intandem.recorder.graph import Guard
from intandem.recorder.locations import user_place
from intandem.recorder.trees import ATOMS, PLAIN, holds_tensors, leaves

if TYPE_CHECKING:
    from collections.abc import Callable

_SEEN = (Tensor, nn.Module, *PLAIN)


def shape_guards(
    function: Callable[..., Any],
    arguments: tuple[tuple[Any, ...], dict[str, Any]],
    template: tuple[Any, Any],
    stand_in: Callable[[Tensor], Any],
    output: Any,
) -> list[Guard]:
    """Return guards on shapes that the values of tensors have decided.

    Args:
        function: that was called.
        arguments: positional and keyword arguments it was called with.
        template: what stands for its arguments in the recording.
        stand_in: returns what stands for a tensor.
        output: what it returned.
    """
    args, kwargs = arguments
    if has_data_dependent_shape(function, args, kwargs):
        shapes = functools.partial(_shapes_of, function)
        return [Guard(shapes, *template, _shapes(output), user_place())]
    if sizes := sizes_given(function, args, kwargs):
        return [Guard(_numbers, (stand_in(t),), {}, _numbers(t), user_place()) for t in sizes]
    if packs_by_length(function):
        lengths = args[1]
        return [Guard(_packed, (stand_in(lengths),), {}, _packed(lengths), user_place())]
    if not selects_by_mask(function):
        return []
    masks = [m for m in leaves(args[1:]) if isinstance(m, Tensor) and m.dtype == torch.bool]
    return [Guard(_count, (stand_in(m),), {}, _count(m), user_place()) for m in masks]


def refuse_hidden_tensors(name: str, given: list[Any]) -> None:
    """Refuse leaves of arguments that hold tensors where nobody can see them.

    Raises:
        CaptureError: naming the call, the type and the line.
    """
    for leaf in given:
        if type(leaf) in ATOMS or isinstance(leaf, _SEEN) or callable(leaf):
            continue
        if holds_tensors(leaf, depth=3):
            raise refusals.hidden_in_object(name, type(leaf).__name__, user_place())


def _shapes(output: Any) -> list[tuple[int, ...]]:
    return [tuple(leaf.shape) for leaf in leaves(output) if isinstance(leaf, Tensor)]


def _shapes_of(function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[tuple[int, ...]]:
    return _shapes(function(*args, **kwargs))


def _count(mask: Tensor) -> int:
    return int(mask.sum())


def _numbers(sizes: Tensor) -> object:
    return sizes.tolist()


def _packed(lengths: Tensor) -> tuple[int, int]:
    return int(lengths.sum()), int(lengths.max())
