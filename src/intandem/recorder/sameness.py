"""Whether two recordings are of the same calls.

[Note: set once] Libraries put some things off until a model is first called (hooks, tables, flags)
and leave a mark on it; models count layers in attributes that each call sets anew. A model that has
changed so is recorded again: when the second run changes nothing and makes the same calls on the
same values, what has been set made no difference to them, and is left as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from intandem.recorder.graph import Attr, Ref
from intandem.recorder.trees import PLAIN, leaves

if TYPE_CHECKING:
    from intandem.recorder.graph import Call, Graph

_FIELDS = (
    "kind name anchor call outputs renewed written inner parameters buffers updates grad_enabled "
    "autocast site"
).split()


def same_calls(one: Graph, two: Graph) -> bool:
    """Tell whether both make the same calls with the same arguments, to the same end."""
    if one.values != two.values or len(one.calls) != len(two.calls):
        return False
    if [guard.outcome for guard in one.guards] != [guard.outcome for guard in two.guards]:
        return False
    pairs = zip(one.calls, two.calls, strict=True)
    return all(_same_call(a, b) for a, b in pairs) and _same_trees(one.output, two.output)


def _same_call(one: Call, two: Call) -> bool:
    return all(getattr(one, name) == getattr(two, name) for name in _FIELDS) and _same_trees(
        (one.args, one.kwargs, one.returned), (two.args, two.kwargs, two.returned)
    )


def _same_trees(one: Any, two: Any) -> bool:
    ours, theirs = leaves(one), leaves(two)
    return len(ours) == len(theirs) and all(map(_same_leaf, ours, theirs))


def _same_leaf(one: Any, two: Any) -> bool:
    if type(one) is not type(two):
        return False
    if isinstance(one, Tensor):
        return one.shape == two.shape and one.dtype == two.dtype and torch.equal(one, two)
    return not isinstance(one, (Ref, Attr, *PLAIN)) or bool(one == two)
