"""Weight gradients that can wait for W: found in the autograd graph that a forward left.

[Note: reading the graph] Blocks run unchanged, and what they did stands in their autograd graph.
Where an operation multiplies activations by a parameter (linear, matmul, einsum, convolution) or
looks rows of one up (embedding), the parameter's gradient is a product of two tensors: what the
operation saved, and the gradient of what it returned. I asks autograd for the gradients of the
stage's entries and of what those operations returned, and autograd computes nothing that leads to
their parameters alone. W multiplies, and adds to ``.grad`` in place, so that no gradient of one
micro-batch is ever stored beside the sum. B is I and W, one after the other: the same bits.

A parameter that an operation of another kind uses as well (a norm, an LSTM, a custom function,
compiled code) gets its whole gradient with I. So does one with gradient hooks, or whose operation
saved its tensors through hooks. Scales and offsets of norms do on purpose: one kernel gives their
gradients and that of the activations, and half of it takes about as long as all of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from intandem.runtime.weight_uses import (
    LEAF,
    RULES,
    add_gradient,
    check_version,
    has_rules_of_its_own,
    leaf_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch.autograd.graph import Node

    from intandem.runtime.weight_uses import Add

_OWN_BACKWARD = "Checkpoint"
"""In names of what runs autograd itself, and refuses where only some gradients are asked for."""


class Term(NamedTuple):
    """One use of one parameter, and the gradient of what the operation returned.

    Attributes:
        leaf: the parameter.
        add: adds to its gradient, given that one.
        gradient: that one.
        version: of its memory, before anybody could write to it.
    """

    leaf: Tensor
    add: Add
    gradient: Tensor
    version: int


@dataclass(slots=True)
class Pending:
    """What I leaves for W."""

    terms: list[Term] = field(default_factory=list)

    def add_up(self) -> None:
        """Run W; terms are let go one by one.

        Raises:
            RuntimeError: if what a term needs has been written to since I.
        """
        with torch.no_grad():
            while self.terms:
                term = self.terms.pop(0)
                check_version(term.gradient, term.version)
                term.add(term.gradient)


class _Waiting(NamedTuple):
    """One use of one parameter whose gradient can wait.

    Attributes:
        node: the operation's.
        leaf: the parameter.
        add: adds to the parameter's gradient, given the gradient of what the operation returned.
    """

    node: Node
    leaf: Tensor
    add: Add


class _Parts(NamedTuple):
    """How the gradients of a graph's leaves are to be found.

    Attributes:
        waiting: uses of parameters, in the order in which autograd would come to them.
        leaves: the other tensors that gradients are added to.
        has_own_code: whether something else than PyTorch's own operations is differentiated,
            which may write to the gradients that it is given.
    """

    waiting: list[_Waiting]
    leaves: list[Tensor]
    has_own_code: bool


def differentiate(
    roots: Sequence[tuple[Tensor, Tensor]], entries: Sequence[Tensor], *, hooked: bool = True
) -> tuple[Sequence[Tensor | None], Pending]:
    """Run I on a graph.

    Args:
        roots: where it begins, each with its gradient.
        entries: leaves whose gradients are to be returned instead of added.
        hooked: whether tensors or nodes of the graph may have hooks.

    Returns:
        The gradients of ``entries``, None for those that have none; and what is left for W.
    """
    tensors, seeds = zip(*roots, strict=True)
    parts = _parts(tensors, entries)
    if parts is None:
        return _whole(tensors, seeds, entries), Pending()
    nodes = list(dict.fromkeys(use.node for use in parts.waiting))
    wanted: list[Any] = [*entries, *parts.leaves, *(GradientEdge(node, 0) for node in nodes)]
    if not wanted:
        return (), Pending()
    returned = _Gradients(nodes if hooked or parts.has_own_code else ())
    found = torch.autograd.grad(tensors, wanted, seeds, allow_unused=True)
    first_leaf, first_node = len(entries), len(entries) + len(parts.leaves)
    with torch.no_grad():
        for leaf, gradient in zip(parts.leaves, found[first_leaf:first_node], strict=True):
            if gradient is not None:
                add_gradient(leaf, gradient)
    known = dict(zip(nodes, returned.of_nodes(found[first_node:]), strict=True))
    terms = [
        Term(use.leaf, use.add, *found_there)
        for use in parts.waiting
        if (found_there := known[use.node]) is not None
    ]
    return found[:first_leaf], Pending(terms)


def num_hooks_made() -> int:
    """Return how many hooks Python has registered so far, in this process.

    Where the number stays the same from before a graph is made to its backward, the graph has none.
    Threads of ranks count together: one may be told of hooks of another's, or of ``_Gradients``.
    """
    return RemovableHandle.next_id


class _Gradients:
    """Gradients of what operations returned: of ``watched`` nodes, as the nodes are given them.

    Where a node runs, autograd reads the gradient that is asked for before the hooks on the tensor
    have changed it; so the node itself is asked. Where it does not run, the reverse holds. Hooks
    hold no node: it would hold itself, and the graph would never be given back. Asking takes a
    call of Python in the middle of the backward, so it is done only where there may be hooks.
    """

    def __init__(self, watched: Sequence[Any]) -> None:
        self._seen: dict[int, tuple[Tensor, int]] = {}
        for index, node in enumerate(watched):
            node.register_prehook(self._take(index))

    def _take(self, index: int) -> Callable[[tuple[Tensor | None, ...]], None]:
        seen = self._seen

        def take(gradients: tuple[Tensor | None, ...]) -> None:
            if gradients[0] is not None:
                seen[index] = gradients[0], gradients[0]._version

        return take

    def of_nodes(self, asked: Sequence[Tensor | None]) -> Iterator[tuple[Tensor, int] | None]:
        """Yield each node's gradient and its version: as seen, or else as autograd returned it."""
        for index, gradient in enumerate(asked):
            unseen = None if gradient is None else (gradient, gradient._version)
            yield self._seen.get(index, unseen)
        self._seen.clear()


def _whole(
    roots: Sequence[Tensor], seeds: Sequence[Tensor], entries: Sequence[Tensor]
) -> list[Tensor | None]:
    """Run all of a graph's backward at once, and return the gradients of ``entries`` as they are.

    ``.grad`` would have the memory layout of the leaf. The layout decides in which order kernels
    take sums, so the stages before would compute other bits than one process does.
    """
    found: list[Tensor | None] = [None] * len(entries)

    def taken_to(index: int) -> Callable[[tuple[Tensor | None, ...]], tuple[None]]:
        def take(gradients: tuple[Tensor | None, ...]) -> tuple[None]:
            (found[index],) = gradients
            return (None,)

        return take

    nodes: list[Any] = [get_gradient_edge(entry).node for entry in entries]
    for index, node in enumerate(nodes):
        node.register_prehook(taken_to(index))
    torch.autograd.backward(roots, seeds)
    return found


def _parts(roots: Sequence[Tensor], entries: Sequence[Tensor]) -> _Parts | None:
    """Say which gradients can wait; None where the graph has to be run as a whole."""
    waiting: list[_Waiting] = []
    leaves: dict[int, Tensor] = {}
    has_own_code = False
    seen: set[Node] = set()
    ahead: list[Node | None] = [root.grad_fn or get_gradient_edge(root).node for root in roots]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = node.name()
        if name == LEAF:
            leaf = leaf_of(node)
            leaves[id(leaf)] = leaf
        elif name in RULES:
            uses = RULES[name](node)
            waiting += [_Waiting(node, use.leaf, use.add) for use in uses]
            apart = {use.position for use in uses}
            edges = enumerate(node.next_functions)
            ahead += [edge[0] for position, edge in edges if position not in apart]
        elif _OWN_BACKWARD in name:
            return None
        else:
            has_own_code = (
                has_own_code
                or type(node).__name__ == "CppFunction"
                or isinstance(node, BackwardCFunction)
            )
            ahead += [edge[0] for edge in node.next_functions]
    if any(map(has_rules_of_its_own, leaves.values())):
        return None
    waiting = [use for use in waiting if id(use.leaf) not in leaves]
    waiting.sort(key=lambda use: -use.node._sequence_nr())
    for entry in entries:
        leaves.pop(id(entry), None)
    added = [leaf for leaf in leaves.values() if leaf.requires_grad]
    return _Parts(waiting, added, has_own_code)
