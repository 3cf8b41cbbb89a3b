"""Adds up the gradients of parameters that several calls or replicas use, once per step.

The order is that of the uses: replica by replica, in graph order.

The rank of the first use adds the parts of the later uses to what that use has accumulated, one
after the other, and hands the total to every other rank that holds the parameter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from intandem.runtime.transport.protocol import Label, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from intandem.runtime.transport.protocol import Transport
    from intandem.runtime.weights import Use, Weights


@dataclass(frozen=True, slots=True)
class TiedParameter:
    """A parameter with several uses.

    Attributes:
        name: the user's name for it.
        uses: its uses in graph order, each with the rank that runs it.
    """

    name: str
    uses: tuple[tuple[Use, int], ...]

    @property
    def owner(self) -> int:
        """Rank of the first use, which adds up."""
        return self.uses[0][1]

    @property
    def others(self) -> tuple[int, ...]:
        """The other ranks that use it, ascending."""
        return tuple(sorted({rank for _, rank in self.uses} - {self.owner}))


class TiedGradients:
    """Adds up for all ranks of this process.

    Args:
        weights: holds the parts.
        tied: parameters with several uses, in the model's order; the same on every rank.
    """

    def __init__(self, weights: Weights, tied: Sequence[TiedParameter]) -> None:
        self._weights = weights
        self._tied = tuple(tied)

    @property
    def any(self) -> bool:
        """Whether there is anything to add up."""
        return bool(self._tied)

    def edges(self) -> set[tuple[int, int]]:
        """Return (source rank, target rank) of every message this takes."""
        pairs = {(other, t.owner) for t in self._tied for other in t.others}
        return pairs | {(target, source) for source, target in pairs}

    def begin(self, rank: int) -> None:
        """Let what ``rank`` accumulates in one step be that step's alone, where another adds up.

        Gradients of earlier steps come back with the total, which the owner adds to its own.
        """
        for tied in self._tied:
            if rank in tied.others and self._holds_no_owner(tied):
                self._weights.parameter(tied.name).grad = None

    def _holds_no_owner(self, tied: TiedParameter) -> bool:
        """Whether the owner is in another process: its leaf is then not the user's parameter."""
        use, _ = tied.uses[0]
        return self._weights.leaf(tied.name, use) is None

    def reduce(self, rank: int, transport: Transport, step: int) -> None:
        """Do ``rank``'s part; every rank calls it once per step."""
        for index, tied in enumerate(self._tied):
            if rank == tied.owner:
                self._add_up(index, tied, transport, step)
            elif rank in tied.others:
                self._contribute(index, tied, transport, step)

    def _add_up(self, index: int, tied: TiedParameter, transport: Transport, step: int) -> None:
        parameter = self._weights.parameter(tied.name)
        contract = _contract(parameter)
        total = parameter.grad
        for number, (use, rank) in enumerate(tied.uses[1:]):
            if rank == tied.owner:
                part = _take(self._weights.leaf(tied.name, use))
            else:
                label = _label(step, index, f"part {number}")
                transport.post(rank, label, contract)
                (part,) = transport.wait(rank, label)
            if part is not None:
                total = part if total is None else _added(total, part)
        parameter.grad = total
        for rank in tied.others:
            payload = (None if total is None else total.detach(),)
            transport.send(rank, _label(step, index, "total"), payload, contract)

    def _contribute(self, index: int, tied: TiedParameter, transport: Transport, step: int) -> None:
        parameter = self._weights.parameter(tied.name)
        contract = _contract(parameter)
        for number, (use, rank) in enumerate(tied.uses[1:]):
            if rank == transport.rank:
                payload = (_take(self._weights.leaf(tied.name, use)),)
                label = _label(step, index, f"part {number}")
                transport.send(tied.owner, label, payload, contract)
        label = _label(step, index, "total")
        transport.post(tied.owner, label, contract)
        (total,) = transport.wait(tied.owner, label)
        parameter.grad = total


def _added(total: Tensor, part: Tensor) -> Tensor:
    """Add a part; torch adds what is sparse to what is dense, and not the reverse."""
    return part + total if total.is_sparse and not part.is_sparse else total + part


def _take(leaf: nn.Parameter | None) -> Tensor | None:
    """Return a part's gradient, leaving none behind."""
    if leaf is None:
        return None
    gradient, leaf.grad = leaf.grad, None
    return gradient


def _contract(parameter: nn.Parameter) -> tuple[TensorSpec]:
    return (TensorSpec(tuple(parameter.shape), parameter.dtype),)


def _label(step: int, index: int, what: str) -> Label:
    return Label(step, f"tied {index} {what}")
