"""Finds what a loss depends on besides the output and the batch.

A pipeline runs the loss on the last stage alone. A parameter that the loss function reaches by
itself, or a tensor that a block has left in an attribute, belongs to another stage, or to another
micro-batch: in one process the numbers would be right, in a pipeline silently wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from intandem.errors import LossError
from intandem.recorder.trees import leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import nn
    from torch.autograd.graph import Node

_REMEDY = (
    "in a pipeline that belongs to another stage or micro-batch: return what the loss needs from "
    "forward, as part of the output"
)


class Origin:
    """Where the graph of an output ends; to be noted before the loss function is called.

    Args:
        output: what the function is given.
    """

    def __init__(self, output: Any) -> None:
        found = [leaf for leaf in leaves(output) if isinstance(leaf, Tensor)]
        self._leaves = {id(tensor): tensor for tensor in found}
        self._nodes = {tensor.grad_fn for tensor in found if tensor.grad_fn is not None}

    def check(self, root: Tensor, name_of: Callable[[Tensor], str | None]) -> None:
        """Refuse a loss whose gradient does not go through the output alone.

        Args:
            root: the loss.
            name_of: returns the user's name of a parameter of the model.

        Raises:
            LossError: naming the parameter that is reached another way.
        """
        leaf = self._leaf_beyond(root)
        if leaf is None:
            return
        name = name_of(leaf)
        what = f"a tensor of shape {tuple(leaf.shape)} that needs gradients"
        msg = (
            f"the loss depends on {what if name is None else f'parameter {name}'}, and not through "
            "its argument `output`: the loss function uses it directly, or uses what a module has "
            f"left in an attribute; {_REMEDY}"
        )
        raise LossError(msg)

    def _leaf_beyond(self, root: Tensor) -> Tensor | None:
        if root.grad_fn is None:
            return root if root.requires_grad and id(root) not in self._leaves else None
        open_nodes: list[Node] = [root.grad_fn]
        seen: set[Node] = set(self._nodes)
        while open_nodes:
            node = open_nodes.pop()
            if node in seen:
                continue
            seen.add(node)
            variable = getattr(node, "variable", None)
            if variable is not None and id(variable) not in self._leaves:
                return variable  # type: ignore[no-any-return]
            open_nodes += [following for following, _ in node.next_functions if following]
        return None


class LeftBehind(TorchFunctionMode):
    """While entered, refuses functions of tensors that ``forward`` has left in attributes.

    Args:
        before: from ``tensors_in_attributes``, before ``forward`` ran.
        after: the same, afterwards.
    """

    def __init__(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._kept = {name: t for name, t in after.items() if before.get(name) is not t}
        self._names = {id(tensor): name for name, tensor in self._kept.items()}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        for leaf in leaves((args, kwargs or {})):
            if (name := self._names.get(id(leaf))) is not None:
                msg = f"the loss uses {name}, which forward has left in an attribute; {_REMEDY}"
                raise LossError(msg)
        return func(*args, **(kwargs or {}))


def tensors_in_attributes(model: nn.Module) -> dict[str, Tensor]:
    """Return tensors that are neither parameters nor buffers, by the user's names for them."""
    return {
        f"{path}.{name}".lstrip("."): tensor
        for path, module in model.named_modules()
        for name, tensor in _plain_tensors(module)
    }


def _plain_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, value in vars(module).items():
        if name in {"_parameters", "_buffers", "_modules"}:
            continue
        found = [value] if isinstance(value, Tensor) else _in_containers(value)
        for index, leaf in enumerate(found):
            yield (name if leaf is value else f"{name}[{index}]"), leaf


def _in_containers(value: Any) -> list[Tensor]:
    if not isinstance(value, list | tuple | dict):
        return []
    return [leaf for leaf in leaves(value) if isinstance(leaf, Tensor)]
