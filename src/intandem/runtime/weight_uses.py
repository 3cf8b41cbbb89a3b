"""Uses of parameters whose gradients can wait, found at an operation's node in the autograd graph.

See [Note: reading the graph] in ``weight_gradients``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.autograd.graph import Node

    _Edge = tuple[Node | None, int]
    Add = Callable[[Tensor], None]

aten = torch.ops.aten

LEAF = "torch::autograd::AccumulateGrad"
_CAST = "ToCopyBackward0"
_MATRIX = 2
_TRANSPOSED = ("TBackward0",)
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


class Use(NamedTuple):
    """What a rule finds: the parameter at one position among a node's inputs.

    Attributes:
        node: the operation's.
        position: among its inputs.
        leaf: the parameter.
        add: adds to the parameter's gradient, given the gradient of what the operation returned.
    """

    node: Any
    position: int
    leaf: Tensor
    add: Add


class _Operand(NamedTuple):
    """A parameter as an operation reads it.

    Attributes:
        edge: where its gradient would go.
        leaf: the parameter.
        passed: names of what lies between the two.
    """

    edge: _Edge
    leaf: nn.Parameter
    passed: tuple[str, ...]

    def add(self, gradient: Tensor) -> None:
        """Add the gradient of what the operation read."""
        if not self.passed:
            add_gradient(self.leaf, gradient)
        else:
            node, number = self.edge
            edge = GradientEdge(cast("Node", node), number)
            torch.autograd.backward(edge, gradient, retain_graph=True)

    def add_product(self, left: Tensor, right: Tensor) -> None:
        """Add ``left @ right``; to a whole parameter without a tensor for the product."""
        if self.passed == _TRANSPOSED:
            self.add_to_whole(right.mT, left.mT)
        elif self.passed:
            self.add(left.matmul(right))
        else:
            self.add_to_whole(left, right)

    def add_to_whole(self, left: Tensor, right: Tensor) -> None:
        """Add ``left @ right`` to the gradient of the parameter itself, a matrix or several."""
        leaf = self.leaf
        grad = leaf.grad
        if grad is not None and grad.layout is torch.strided:
            add = grad.addmm_ if grad.dim() == _MATRIX else grad.baddbmm_
            add(left, right)
            return
        product = left.matmul(right)
        if grad is None and (product.stride(), product.dtype) == (leaf.stride(), leaf.dtype):
            leaf.grad = product  # nobody else has it
        else:
            add_gradient(leaf, product)


def _operand(edge: _Edge) -> _Operand | None:
    """Return the parameter that an edge leads to and to nothing else, if its gradient can wait."""
    passed: tuple[str, ...] = ()
    node = edge[0]
    while node is not None and (name := node.name()) != LEAF:
        if name not in _PASSED_ON:
            return None
        passed = (*passed, name)
        node = node.next_functions[0][0]
    if node is None:
        return None
    leaf = leaf_of(node)
    if not isinstance(leaf, nn.Parameter) or has_rules_of_its_own(leaf) or not leaf.requires_grad:
        return None
    return _Operand(edge, leaf, passed)


def leaf_of(node: Node) -> Tensor:
    """Return what a node of name ``LEAF`` adds gradients to."""
    variable: Tensor = node.variable  # type: ignore[attr-defined]
    return variable


def has_rules_of_its_own(leaf: Tensor) -> bool:
    """Whether more is to happen to a leaf's gradient than that it is added up."""
    hooks = leaf._backward_hooks or getattr(leaf, "_post_accumulate_grad_hooks", None)
    return bool(hooks) or getattr(leaf, "grad_dtype", leaf.dtype) not in {None, leaf.dtype}


def _saved(node: Any, name: str) -> Callable[[], Tensor] | None:
    """Return what reads a tensor that an operation saved.

    None if it passed through hooks, which have to see it, or is no plain array of numbers. Reading
    raises if it has been written to.
    """
    raw = getattr(node, "_raw_saved_" + name, None)
    # Before torch could say whether there are hooks, all are taken to have some.
    if raw is None or getattr(raw, "unpack_hook", raw) is not None:
        return None
    saved: Tensor = getattr(node, "_saved_" + name)
    if saved.layout is not torch.strided:
        return None
    kept = saved.detach()  # so that it does not hold on to the graph
    version = kept._version

    def read() -> Tensor:
        check_version(kept, version)
        return kept

    return read


def _factor(node: Any, first: int, left_name: str, right_name: str) -> Use | None:
    """Return the use of a parameter as a factor of a product of matrices, if there is one.

    Args:
        node: the product's.
        first: position of the left factor among its inputs.
        left_name: by which the left factor is saved.
        right_name: by which the right factor is saved.
    """
    edges = node.next_functions
    if (right := _operand(edges[first + 1])) is not None:
        if (x := _saved(node, left_name)) is None:
            return None
        if right.passed == _TRANSPOSED and not right.leaf.is_complex():  # of linear: two views less
            return Use(node, first + 1, right.leaf, lambda g: right.add_to_whole(g.mT, x()))
        return Use(node, first + 1, right.leaf, lambda g: right.add_product(x().mH, g))
    if (left := _operand(edges[first])) is not None:
        y = _saved(node, right_name)
        if y is not None:
            return Use(node, first, left.leaf, lambda g: left.add_product(g, y().mH))
    return None


def _mm(node: Any) -> list[Use]:
    use = _factor(node, 0, "self", "mat2")
    return [] if use is None else [use]


def _addmm(node: Any) -> list[Use]:
    if node._saved_alpha != 1 or node._saved_beta != 1:
        return []
    use = _factor(node, 1, "mat1", "mat2")
    if use is None:
        return []
    offset = _operand(node.next_functions[0])
    if offset is None or offset.leaf.dim() != 1 or offset.passed not in {(), (_CAST,)}:
        return [use]
    return [use, Use(node, 0, offset.leaf, lambda g: offset.add(_sum_of_rows(g, offset.leaf)))]


def _sum_of_rows(gradient: Tensor, leaf: Tensor) -> Tensor:
    if gradient.shape[1:] == leaf.shape:
        return gradient.sum(0)
    return gradient.sum_to_size(leaf.shape)


def _convolution(node: Any) -> list[Use]:
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

    return [Use(node, 1, weight.leaf, add)]


def _embedding(node: Any) -> list[Use]:
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
            add_gradient(leaf, aten.embedding_dense_backward(terms, flat, len(leaf), -1, False))
        elif leaf.is_cuda:
            leaf.grad.index_put_((flat,), terms, accumulate=True)  # sums in a fixed order
        else:
            leaf.grad.index_add_(0, flat, terms)

    return [Use(node, 0, leaf, add)]


RULES: dict[str, Callable[[Any], list[Use]]] = {
    "AddmmBackward0": _addmm,
    "BmmBackward0": _mm,
    "ConvolutionBackward0": _convolution,
    "EmbeddingBackward0": _embedding,
    "MmBackward0": _mm,
}
"""How to find parameters whose gradients can wait, by the name of an operation's node."""


def add_gradient(leaf: Tensor, gradient: Tensor) -> None:
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


def check_version(tensor: Tensor, version: int) -> None:
    """Raise RuntimeError if ``tensor`` has been written to since it had ``version``."""
    if tensor._version != version:
        msg = (
            "a tensor that the gradient of a weight needs was changed in place between the "
            "backward for inputs and the one for weights; clone it before it is used, or take a "
            "schedule that does not split backwards"
        )
        raise RuntimeError(msg)
