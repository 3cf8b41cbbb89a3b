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
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch.autograd.graph import Node

    _Edge = tuple[Node | None, int]
    _Add = Callable[[Tensor], None]

aten = torch.ops.aten

_LEAF = "torch::autograd::AccumulateGrad"
_OWN_BACKWARD = "Checkpoint"
"""In names of what runs autograd itself, and refuses where only some gradients are asked for."""

_CAST = "ToCopyBackward0"
_MATRIX = 2
_PASSED_ON = frozenset(
    f"{name}Backward{version}"
    for name in (
        "Alias", "AsStrided", "Expand", "Permute", "ReshapeAlias", "Select", "Slice", "Split",
        "SplitWithSizes", "Squeeze", "T", "ToCopy", "Transpose", "Unbind", "UnsafeView",
        "Unsqueeze", "View",
    )
    for version in range(3)
)  # fmt: skip
"""Between a parameter and the operation that uses it: views, and a cast under autocast."""


class Term(NamedTuple):
    """One use of one parameter, and the gradient of what the operation returned.

    Attributes:
        leaf: the parameter.
        add: adds to its gradient, given that one.
        gradient: that one.
        version: of its memory, before anybody could write to it.
    """

    leaf: Tensor
    add: _Add
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
                _check_version(term.gradient, term.version)
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
    add: _Add


class _Parts(NamedTuple):
    """How the gradients of a graph's leaves are to be found.

    Attributes:
        waiting: uses of parameters, in the order in which autograd would come to them.
        leaves: the other tensors that gradients are added to.
    """

    waiting: list[_Waiting]
    leaves: list[Tensor]


def differentiate(
    roots: Sequence[tuple[Tensor, Tensor]], entries: Sequence[Tensor]
) -> tuple[Sequence[Tensor | None], Pending]:
    """Run I on a graph.

    Args:
        roots: where it begins, each with its gradient.
        entries: leaves whose gradients are to be returned instead of added.

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
    returned = _Gradients(nodes)
    found = torch.autograd.grad(tensors, wanted, seeds, allow_unused=True)
    first_leaf, first_node = len(entries), len(entries) + len(parts.leaves)
    with torch.no_grad():
        for leaf, gradient in zip(parts.leaves, found[first_leaf:first_node], strict=True):
            if gradient is not None:
                _add_gradient(leaf, gradient)
    known = dict(zip(nodes, returned.of_nodes(found[first_node:]), strict=True))
    terms = [
        Term(use.leaf, use.add, *found_there)
        for use in parts.waiting
        if (found_there := known[use.node]) is not None
    ]
    return found[:first_leaf], Pending(terms)


class _Gradients:
    """Gradients of what operations returned, as their nodes are given them.

    Where a node runs, autograd reads the gradient that is asked for before the hooks on the tensor
    have changed it; so the node itself is asked. Where it does not run, the reverse holds. Hooks
    hold no node: it would hold itself, and the graph would never be given back.
    """

    def __init__(self, nodes: Sequence[Any]) -> None:
        self._seen: dict[int, tuple[Tensor, int]] = {}
        for index, node in enumerate(nodes):
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


def _check_version(tensor: Tensor, version: int) -> None:
    if tensor._version != version:
        msg = (
            "a tensor that the gradient of a weight needs was changed in place between the "
            "backward for inputs and the one for weights; clone it before it is used, or take a "
            "schedule that does not split backwards"
        )
        raise RuntimeError(msg)


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
    seen: set[Node] = set()
    ahead: list[Node | None] = [root.grad_fn or get_gradient_edge(root).node for root in roots]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = node.name()
        if name == _LEAF:
            leaf = _variable(node)
            leaves[id(leaf)] = leaf
        elif name in _RULES:
            uses = _RULES[name](node)
            waiting += [_Waiting(node, use.leaf, use.add) for use in uses]
            apart = {use.position for use in uses}
            edges = enumerate(node.next_functions)
            ahead += [edge[0] for position, edge in edges if position not in apart]
        elif _OWN_BACKWARD in name:
            return None
        else:
            ahead += [edge[0] for edge in node.next_functions]
    if any(map(_has_rules_of_its_own, leaves.values())):
        return None
    waiting = [use for use in waiting if id(use.leaf) not in leaves]
    waiting.sort(key=lambda use: -use.node._sequence_nr())
    for entry in entries:
        leaves.pop(id(entry), None)
    return _Parts(waiting, [leaf for leaf in leaves.values() if leaf.requires_grad])


def _add_gradient(leaf: Tensor, gradient: Tensor) -> None:
    """Add to ``leaf.grad`` as autograd does: in place, in the leaf's layout."""
    before = leaf.grad
    if before is not None and before.layout is gradient.layout is torch.strided:
        before.add_(gradient)
    elif before is not None:
        leaf.grad = gradient + before if before.is_sparse else before + gradient
    elif gradient.layout is torch.strided:
        leaf.grad = torch.empty_like(leaf).copy_(gradient)
    else:
        leaf.grad = gradient.clone()


class _Use(NamedTuple):
    """What a rule finds: the parameter at one position among a node's inputs."""

    position: int
    leaf: Tensor
    add: _Add


class _Operand(NamedTuple):
    """A parameter as an operation reads it.

    Attributes:
        edge: where its gradient would go.
        leaf: the parameter.
        passed: names of what lies between the two.
    """

    edge: GradientEdge
    leaf: nn.Parameter
    passed: tuple[str, ...]

    def add(self, gradient: Tensor) -> None:
        """Add the gradient of what the operation read."""
        if not self.passed:
            _add_gradient(self.leaf, gradient)
        else:
            torch.autograd.backward(self.edge, gradient, retain_graph=True)

    def add_product(self, left: Tensor, right: Tensor) -> None:
        """Add ``left @ right``; to a whole matrix without a tensor for the product."""
        if self.passed == ("TBackward0",):
            left, right = right.mT, left.mT
        if self.passed not in {(), ("TBackward0",)} or self.leaf.dim() > _MATRIX:
            self.add(left.matmul(right))
        elif self.leaf.grad is None or self.leaf.grad.layout is not torch.strided:
            _add_gradient(self.leaf, left.matmul(right))
        else:
            self.leaf.grad.addmm_(left, right)


def _operand(edge: _Edge) -> _Operand | None:
    """Return the parameter that an edge leads to and to nothing else, if its gradient can wait."""
    first, passed = edge, list[str]()
    node = first[0]
    while node is not None and (name := node.name()) != _LEAF:
        if name not in _PASSED_ON:
            return None
        passed.append(name)
        node = node.next_functions[0][0]
    if node is None or first[0] is None:
        return None
    leaf = _variable(node)
    if not isinstance(leaf, nn.Parameter) or _has_rules_of_its_own(leaf) or not leaf.requires_grad:
        return None
    return _Operand(GradientEdge(first[0], first[1]), leaf, tuple(passed))


def _variable(node: Node) -> Tensor:
    variable: Tensor = node.variable  # type: ignore[attr-defined]
    return variable


def _has_rules_of_its_own(leaf: Tensor) -> bool:
    """Whether more is to happen to a leaf's gradient than that it is added up."""
    hooks = leaf._backward_hooks or getattr(leaf, "_post_accumulate_grad_hooks", None)
    return bool(hooks) or getattr(leaf, "grad_dtype", leaf.dtype) not in {None, leaf.dtype}


def _saved(node: Any, name: str) -> Callable[[], Tensor] | None:
    """Return what reads a tensor that an operation saved.

    None if it passed through hooks, which have to see it, or is no plain array of numbers. Reading
    raises if it has been written to.
    """
    raw = getattr(node, f"_raw_saved_{name}", None)
    # Before torch could say whether there are hooks, all are taken to have some.
    if raw is None or getattr(raw, "unpack_hook", raw) is not None:
        return None
    saved: Tensor = getattr(node, f"_saved_{name}")
    if saved.layout is not torch.strided:
        return None
    kept = saved.detach()  # so that it does not hold on to the graph
    version = kept._version

    def read() -> Tensor:
        _check_version(kept, version)
        return kept

    return read


def _factor(node: Any, first: int, left_name: str, right_name: str) -> _Use | None:
    """Return the use of a parameter as a factor of a product of matrices, if there is one.

    Args:
        node: the product's.
        first: position of the left factor among its inputs.
        left_name: by which the left factor is saved.
        right_name: by which the right factor is saved.
    """
    edges = node.next_functions
    if (right := _operand(edges[first + 1])) is not None:
        x = _saved(node, left_name)
        return (
            None
            if x is None
            else _Use(first + 1, right.leaf, lambda g: right.add_product(x().mH, g))
        )
    if (left := _operand(edges[first])) is not None:
        y = _saved(node, right_name)
        return None if y is None else _Use(first, left.leaf, lambda g: left.add_product(g, y().mH))
    return None


def _mm(node: Any) -> list[_Use]:
    use = _factor(node, 0, "self", "mat2")
    return [] if use is None else [use]


def _addmm(node: Any) -> list[_Use]:
    if node._saved_alpha != 1 or node._saved_beta != 1:
        return []
    use = _factor(node, 1, "mat1", "mat2")
    if use is None:
        return []
    offset = _operand(node.next_functions[0])
    if offset is None or offset.leaf.dim() != 1 or {*offset.passed} - {_CAST}:
        return [use]
    return [use, _Use(0, offset.leaf, lambda g: offset.add(g.sum_to_size(offset.leaf.shape)))]


def _convolution(node: Any) -> list[_Use]:
    weight, x = _operand(node.next_functions[1]), _saved(node, "input")
    if weight is None or x is None:
        return []
    read: Tensor = node._saved_weight
    settings = (
        node._saved_stride, node._saved_padding, node._saved_dilation,
        node._saved_transposed, node._saved_output_padding, node._saved_groups,
    )  # fmt: skip

    def add(gradient: Tensor) -> None:
        _, found, _ = aten.convolution_backward(
            gradient, x(), read, None, *settings, (False, True, False)
        )
        weight.add(found)

    return [_Use(1, weight.leaf, add)]


def _embedding(node: Any) -> list[_Use]:
    table, rows = _operand(node.next_functions[0]), _saved(node, "indices")
    unusual = node._saved_sparse or node._saved_scale_grad_by_freq
    if table is None or table.passed or rows is None or unusual:
        return []
    leaf, padding = table.leaf, node._saved_padding_idx

    def add(gradient: Tensor) -> None:
        flat, terms = rows().reshape(-1), gradient.reshape(-1, gradient.shape[-1])
        if 0 <= padding < len(leaf):
            terms = terms.masked_fill((flat == padding)[:, None], 0)
        if leaf.grad is None:
            leaf.grad = torch.zeros_like(leaf)
        elif leaf.grad.is_sparse:
            leaf.grad = leaf.grad.to_dense()
        if leaf.is_cuda and leaf.dtype in {torch.float16, torch.bfloat16}:
            # Each row would be rounded as it is added; this sums rows in single precision.
            _add_gradient(leaf, aten.embedding_dense_backward(terms, flat, len(leaf), -1, False))
        elif leaf.is_cuda:
            leaf.grad.index_put_((flat,), terms, accumulate=True)  # sums in a fixed order
        else:
            leaf.grad.index_add_(0, flat, terms)

    return [_Use(0, leaf, add)]


_RULES: dict[str, Callable[[Any], list[_Use]]] = {
    "AddmmBackward0": _addmm,
    "BmmBackward0": _mm,
    "ConvolutionBackward0": _convolution,
    "EmbeddingBackward0": _embedding,
    "MmBackward0": _mm,
}
"""How to find parameters whose gradients can wait, by the name of an operation's node."""
