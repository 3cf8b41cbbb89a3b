"""Forward and backward of one stage on one micro-batch, joined to its neighbours by gradients."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from intandem.runtime.randomness import default_generators_held
from intandem.runtime.weight_gradients import Pending, differentiate, num_hooks_made

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.autograd.graph import GradientEdge

    from intandem.runtime.stage import Environment, Stage
    from intandem.runtime.weight_gradients import Root


_OWN_USERS = 2
"""Users of memory that a tensor has to itself: the tensor, and Python's object for the memory."""


@dataclass(slots=True)
class Kept:
    """What a forward keeps for its backward.

    Attributes:
        entries: leaves that stand for received values, by value.
        entry_gradients: their gradients, once a backward has run, by value.
        exits: where the graph begins that made values other stages read, by value; their memory is
            given back as soon as nobody reads it. None where no gradient goes.
        ends: (tensor, gradient that it is given) where backward begins: of the loss, or of the
            output; on the last stage.
        draws: whether the backward draws random numbers again.
        num_hooks_before: hooks registered in this process when the forward began.
    """

    entries: dict[int, Tensor] = field(default_factory=dict)
    entry_gradients: dict[int, Tensor] = field(default_factory=dict)
    exits: dict[int, GradientEdge | None] = field(default_factory=dict)
    ends: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    draws: bool = False
    num_hooks_before: int = field(default_factory=num_hooks_made)

    @property
    def hooked(self) -> bool:
        """Whether hooks may have been registered on the graph: any have been since it was begun."""
        return num_hooks_made() != self.num_hooks_before


def enter(
    stage: Stage, given: Mapping[int, Tensor], *, with_gradients: bool
) -> tuple[Environment, Kept]:
    """Return a fresh environment of what a stage is given, and the leaves gradients end at.

    Args:
        stage: to be run.
        given: batch values and received values; not changed, not even where the stage writes.
        with_gradients: whether received values become leaves.
    """
    kept = Kept(draws=stage.draws_in_backward)
    environment: Environment = {}
    leaves, copied = stage.leaves if with_gradients else (), stage.cut.copied
    for value, tensor in given.items():
        entry = tensor
        if value in leaves:
            entry = kept.entries[value] = tensor.detach().requires_grad_()
        environment[value] = entry.clone() if value in copied else entry
    return environment, kept


def leave(stage: Stage, environment: Environment, kept: Kept) -> None:
    """Note the values that gradients will arrive for."""
    for values in stage.cut.sent.values():
        for value in values:
            made = environment[value]
            kept.exits[value] = get_gradient_edge(made) if made.requires_grad else None


def backward(kept: Kept, gradients: Mapping[int, Tensor | None]) -> None:
    """Run B: gradients of the stage's entries and of its parameters."""
    backward_weights(backward_inputs(kept, gradients, at_once=True))


def backward_inputs(
    kept: Kept, gradients: Mapping[int, Tensor | None], *, at_once: bool = False
) -> Pending:
    """Run I: gradients of the stage's entries, and of parameters where they cannot wait.

    With ``at_once``, also of parameters that could wait, and little is left for W.

    The gradient that arrives for a value is the first term of its sum, as it would be in one
    process, where later readers come first.
    """
    roots = _roots(kept, gradients)
    if not roots:
        return Pending()
    entries = list(kept.entries.values())
    with default_generators_held() if kept.draws else nullcontext():
        found, pending = differentiate(roots, entries, hooked=kept.hooked, at_once=at_once)
    for value, gradient in zip(kept.entries, found, strict=True):
        if gradient is not None:
            kept.entry_gradients[value] = gradient
    return pending


def backward_weights(pending: Pending) -> None:
    """Run W after I: gradients of the stage's parameters that waited."""
    pending.add_up()


def gradient_to_send(kept: Kept, value: int) -> Tensor | None:
    """Return the gradient of an entry, in memory that nothing else here writes to.

    Autograd lets a parameter's ``.grad`` be a view of a gradient that goes elsewhere as well, and
    the next micro-batch is added to ``.grad`` in place.
    """
    gradient = kept.entry_gradients.get(value)
    if gradient is None:
        return None
    storage = gradient.untyped_storage()
    num_users = torch._C._storage_Use_Count(storage._cdata)
    return gradient if num_users == _OWN_USERS else _copied(gradient)


def _copied(tensor: Tensor) -> Tensor:
    """Return a copy with the strides of ``tensor``, gaps and repeated elements included."""
    made = torch.empty_strided(
        tensor.size(), tensor.stride(), dtype=tensor.dtype, device=tensor.device
    )
    source, target = tensor, made
    for dim, (size, stride) in enumerate(zip(tensor.size(), tensor.stride(), strict=True)):
        if size > 1 and stride == 0:
            source, target = source.narrow(dim, 0, 1), target.narrow(dim, 0, 1)
    target.copy_(source)
    return made


def _roots(kept: Kept, gradients: Mapping[int, Tensor | None]) -> list[tuple[Root, Tensor]]:
    """Return where the backward begins, each with its gradient."""
    known: Mapping[int, Root | None] = {**kept.entries, **kept.exits}
    arrived = [
        (root, gradient)
        for value, gradient in gradients.items()
        if gradient is not None and (root := known[value]) is not None
    ]
    return [*arrived, *(end for end in kept.ends if end[0].requires_grad)]
