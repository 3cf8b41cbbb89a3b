"""Weight gradients that can wait for W: found in the autograd graph that a forward left.

[Note: reading the graph] Blocks run unchanged, and what they did stands in their autograd graph.
Where an operation multiplies activations by a parameter (linear, matmul, einsum, convolution) or
looks rows of one up (embedding), the parameter's gradient is a product of two tensors: what the
operation saved, and the gradient of what it returned. I asks autograd for the gradients of the
stage's entries and of what those operations returned, and autograd computes nothing that leads to
their parameters alone. W multiplies, and adds to ``.grad`` in place, so that no gradient of one
micro-batch is ever stored beside the sum. B multiplies in the midst of it, where autograd comes
to the operation: the same products in the same order, hence the same bits, of tensors that are
still in the processor's cache, and are let go at once.

A parameter that an operation of another kind uses as well (a norm, an LSTM, a custom function,
compiled code) gets its whole gradient with I. So does one with gradient hooks, or whose operation
saved its tensors through hooks. Scales and offsets of norms do on purpose: one kernel gives their
gradients and that of the activations, and in two halves takes 1.2 to 1.5 times as long; where a
scale is an operation of its own (RMS norms), W would take what I saves, and keep twice the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge, _engine_run_backward, get_gradient_edge
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
    from collections.abc import Callable, Sequence

    from torch.autograd.graph import Node

    from intandem.runtime.weight_uses import Add, Use

Root: TypeAlias = Tensor | GradientEdge
"""Where a backward begins: a tensor, or the place in the graph of one that need not be kept."""

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
        terms = self.terms
        terms.reverse()
        with torch.no_grad():
            while terms:
                _, add, gradient, version = terms.pop()
                check_version(gradient, version)
                add(gradient)


class _Parts(NamedTuple):
    """How the gradients of a graph's leaves are to be found.

    Attributes:
        waiting: uses of parameters, in the order in which autograd would come to them.
        leaves: the other tensors that gradients are added to.
        has_own_code: whether something else than PyTorch's own operations is differentiated,
            which may write to the gradients that it is given.
        ends: nodes of uses that lead to nothing but what waits.
    """

    waiting: list[Use]
    leaves: list[Tensor]
    has_own_code: bool
    ends: set[Node]

    def without_those_met(self) -> tuple[list[Use], dict[Node, list[Use]]]:
        """Return the uses that must wait for the end of a whole backward, and the others by node.

        Autograd comes to an operation that it needs not only for what waits. All uses of one
        parameter are kept together, so that its terms are added in one order.
        """
        late = {
            id(use.leaf)
            for use in self.waiting
            if use.node in self.ends or not use.leaf.is_cpu  # whose streams autograd joins itself
        }
        met: dict[Node, list[Use]] = {}
        for use in self.waiting:
            if id(use.leaf) not in late:
                met.setdefault(use.node, []).append(use)
        return [use for use in self.waiting if id(use.leaf) in late], met


def differentiate(
    roots: Sequence[tuple[Root, Tensor]],
    entries: Sequence[Tensor],
    *,
    hooked: bool = True,
    at_once: bool = False,
) -> tuple[Sequence[Tensor | None], Pending]:
    """Run I on a graph; or most of B.

    Args:
        roots: where it begins, each with its gradient.
        entries: leaves whose gradients are to be returned instead of added.
        hooked: whether tensors or nodes of the graph may have hooks.
        at_once: whether to add the gradients of parameters as soon as they can be computed.

    Returns:
        The gradients of ``entries``, None for those that have none; and what is left for W.
    """
    tensors, seeds = zip(*roots, strict=True)
    parts = _parts(tensors, entries)
    if parts is None:
        return _whole(tensors, seeds, entries), Pending()
    waiting, leaves, has_own_code = parts.waiting, parts.leaves, parts.has_own_code
    if at_once:
        waiting = _met(parts)
    del parts  # what is added on the way is let go on the way
    nodes = list(dict.fromkeys([use.node for use in waiting]))
    wanted: list[Any] = [*entries, *leaves, *[GradientEdge(node, 0) for node in nodes]]
    if not wanted:
        return (), Pending()
    seen = _shown_to(nodes) if hooked or has_own_code else {}
    found = _engine_run_backward(
        tensors, seeds, False, False, tuple(wanted), allow_unreachable=True, accumulate_grad=False
    )
    first_leaf, first_node = len(entries), len(entries) + len(leaves)
    if leaves:
        with torch.no_grad():
            for leaf, gradient in zip(leaves, found[first_leaf:first_node], strict=True):
                if gradient is not None:
                    add_gradient(leaf, gradient)
    known = {
        node: seen.get(index) or (gradient, 0 if gradient is None else gradient._version)
        for index, (node, gradient) in enumerate(zip(nodes, found[first_node:], strict=True))
    }
    seen.clear()
    terms = [
        Term(use.leaf, use.add, gradient, version)
        for use in waiting
        for gradient, version in (known[use.node],)
        if gradient is not None
    ]
    return found[:first_leaf], Pending(terms)


def num_hooks_made() -> int:
    """Return how many hooks Python has registered so far, in this process.

    Where the number stays the same from before a graph is made to its backward, the graph has none.
    Threads of ranks count together: one may be told of hooks of another's, or of ``_shown_to``.
    """
    return RemovableHandle.next_id


def _met(parts: _Parts) -> list[Use]:
    """Have parameters added to where autograd comes to their operations; return the other uses."""
    waiting, met = parts.without_those_met()
    for node, uses in met.items():
        node.register_prehook(_adds(uses))
    return waiting


def _adds(uses: Sequence[Use]) -> Callable[[tuple[Tensor | None, ...]], None]:
    """Return what adds to parameters where autograd comes to their node, and then lets all go."""
    adds = [use.add for use in uses]

    def add(gradients: tuple[Tensor | None, ...]) -> None:
        if gradients[0] is not None:
            for one in adds:
                one(gradients[0])
        adds.clear()

    return add


def _shown_to(nodes: Sequence[Any]) -> dict[int, tuple[Tensor, int]]:
    """Return what the gradients that nodes are given will be put into, with their versions.

    Where a node runs, autograd reads the gradient that is asked for before the hooks on the tensor
    have changed it; so the node itself is asked. Where it does not run, the reverse holds. Hooks
    hold no node: it would hold itself, and the graph would never be given back. Asking takes a
    call of Python in the middle of the backward, so it is done only where there may be hooks.
    """
    seen: dict[int, tuple[Tensor, int]] = {}

    def taken_to(index: int) -> Callable[[tuple[Tensor | None, ...]], None]:
        def take(gradients: tuple[Tensor | None, ...]) -> None:
            if gradients[0] is not None:
                seen[index] = gradients[0], gradients[0]._version

        return take

    for index, node in enumerate(nodes):
        node.register_prehook(taken_to(index))
    return seen


def _whole(
    roots: Sequence[Root], seeds: Sequence[Tensor], entries: Sequence[Tensor]
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
    torch.autograd.backward(cast("Sequence[GradientEdge]", roots), seeds)  # or tensors, or both
    return found


def _parts(roots: Sequence[Root], entries: Sequence[Tensor]) -> _Parts | None:
    """Say which gradients can wait; None where the graph has to be run as a whole."""
    waiting: list[Use] = []
    leaves: dict[int, Tensor] = {}
    has_own_code = False
    seen: set[Node] = set()
    ends: set[Node] = set()
    ahead: list[Node] = [_node(root) for root in roots]
    while ahead:
        node = ahead.pop()
        if node in seen:
            continue
        seen.add(node)
        name = node.name()
        if name == LEAF:
            leaf = leaf_of(node)
            leaves[id(leaf)] = leaf
        elif (rule := RULES.get(name)) is not None and (uses := rule(node)):
            waiting += uses
            if not (others := _nodes_after(node, [use.position for use in uses])):
                ends.add(node)
            ahead += others
        elif _OWN_BACKWARD in name:
            return None
        else:
            has_own_code = has_own_code or _is_own_code(node)
            ahead += _nodes_after(node)
    return _told_apart(waiting, leaves, ends, entries, has_own_code=has_own_code)


def _told_apart(
    waiting: list[Use],
    leaves: dict[int, Tensor],
    ends: set[Node],
    entries: Sequence[Tensor],
    *,
    has_own_code: bool,
) -> _Parts | None:
    if any(map(has_rules_of_its_own, leaves.values())):
        return None
    waiting = [use for use in waiting if id(use.leaf) not in leaves]
    if len(waiting) > 1:
        waiting.sort(key=lambda use: -use.node._sequence_nr())
    for entry in entries:
        leaves.pop(id(entry), None)
    wanted = [leaf for leaf in leaves.values() if leaf.requires_grad]
    if len(wanted) < len(leaves):  # frozen since: autograd may not come to what leads there alone
        ends |= {use.node for use in waiting}
    return _Parts(waiting, wanted, has_own_code, ends)


def _node(root: Root) -> Node:
    if isinstance(root, GradientEdge):
        return root.node
    return root.grad_fn or get_gradient_edge(root).node


def _is_own_code(node: Node) -> bool:
    return type(node).__name__ == "CppFunction" or isinstance(node, BackwardCFunction)


def _nodes_after(node: Node, apart: Sequence[int] = ()) -> list[Node]:
    """Return where a node's gradients go, but for some positions among its inputs."""
    edges = enumerate(node.next_functions)
    return [edge[0] for position, edge in edges if edge[0] is not None and position not in apart]
