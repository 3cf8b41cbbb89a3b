"""A model that is run again on the same batch has to do the same.

What one run leaves for the next outside of buffers (a global number, an iterator, a clock, a
generator of its own) would be frozen in a recording. It shows when two recordings of the same
batch, made with the same random draws, are held against each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from intandem.recorder import refusals
from intandem.recorder.graph import Attr, Ref
from intandem.recorder.trees import PLAIN, leaves

if TYPE_CHECKING:
    from intandem.recorder.capture import Run
    from intandem.recorder.graph import Call


def check_repeated(first: Run, second: Run) -> None:
    """Refuse a model whose second run on the same batch differs from the first.

    A run may take less (what is computed once and kept), as long as the numbers are the same.

    Args:
        first: a recording.
        second: another of the same batch, made with the same random state.

    Raises:
        CaptureError: naming the line of the first call that differs, and what it differs in.
    """
    ours, theirs = first.graph.calls, second.graph.calls
    same_calls = [c.name for c in ours] == [c.name for c in theirs]
    if same_calls:
        for call, again in zip(ours, theirs, strict=True):
            _check_constants(call, again)
    pairs = zip(_tensors(first.output), _tensors(second.output), strict=False)
    if all(_same(one, other) for one, other in pairs):
        return
    raise refusals.not_repeated(_where(first, second) if same_calls else _other_call(first, second))


def _check_constants(call: Call, again: Call) -> None:
    before, after = (leaves((c.args, c.kwargs)) for c in (call, again))
    for one, other in zip(before, after, strict=False):
        if isinstance(one, Ref | Attr) or isinstance(other, Ref | Attr):
            continue
        if isinstance(one, PLAIN) and isinstance(other, PLAIN) and one != other and one == one:  # noqa: PLR0124
            raise refusals.constant_changes(call.name, one, other, call.location)


def _where(first: Run, second: Run) -> str:
    """Say which call gave other numbers than before."""
    for call, again in zip(first.graph.calls, second.graph.calls, strict=True):
        made = zip(call.outputs, again.outputs, strict=False)
        if any(
            one is not None
            and other is not None
            and not _same(first.tensors[one], second.tensors[other])
            for one, other in made
        ):
            return f"{call.name} at {call.location} is the first call whose result differs"
    return "its calls give the same, and are put together otherwise"


def _other_call(first: Run, second: Run) -> str:
    pairs = zip(first.graph.calls, second.graph.calls, strict=False)
    for call, again in pairs:
        if call.name != again.name:
            return f"it calls {call.name} at {call.location}, then {again.name} at {again.location}"
    return f"it makes {len(first.graph.calls)} calls, then {len(second.graph.calls)}"


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in leaves(output) if isinstance(leaf, Tensor)]


def _same(one: Tensor, other: Tensor) -> bool:
    """Tell whether two results are equal up to the order in which a device adds things up."""
    if one.is_meta or other.is_meta or isinstance(one, FakeTensor) or isinstance(other, FakeTensor):
        return True
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    one, other = one.detach(), other.detach()
    if torch.equal(one, other) or not (one.is_floating_point() or one.is_complex()):
        return torch.equal(one, other)
    allowed = torch.finfo(one.dtype).eps ** 0.5
    wide = torch.complex128 if one.is_complex() else torch.float64
    one, other = torch.nan_to_num(one.to(wide)), torch.nan_to_num(other.to(wide))
    return bool(torch.linalg.vector_norm(one - other) <= allowed * torch.linalg.vector_norm(one))
