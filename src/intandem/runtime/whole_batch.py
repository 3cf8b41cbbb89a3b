"""Losses of the whole batch: micro-batches' outputs joined, and the gradient handed back to each.

The last stage forwards every micro-batch, joins what they gave, computes the loss once and its
gradient with respect to every output; each micro-batch's backward then begins with its own part.
That all of its forwards come first is a fact of the schedule (``rules.barrier``).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from intandem.errors import BatchError, LossError
from intandem.recorder.trees import leaves, map_tree, named_leaves
from intandem.runtime.microbatch import dim_of_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from intandem.runtime.microbatch import Split


class Way(Enum):
    """How an output of micro-batches becomes the whole batch's."""

    ROWS = "joined on dim 0, where its rows are"
    SAME = "the first one's: its shape has nothing to do with rows"
    NONE = "not at all: rows are elsewhere too"


@dataclass(frozen=True, slots=True)
class Joining:
    """How micro-batches of one pipeline are joined.

    Attributes:
        split: as for ``Pipeline``.
        ways: by name of the output's leaf.
    """

    split: Split | None
    ways: Mapping[str, Way]

    def batch(self, parts: Sequence[Any]) -> Any:
        """Return the batch that ``parts`` were split from.

        Raises:
            BatchError: if they were split before, and do not fit together.
        """
        return join_batch(parts, self.split)

    def output(self, outputs: Sequence[Any]) -> Any:
        """Return what the model would have given for the whole batch.

        What cannot be joined becomes an ``Unjoined``.
        """
        columns = iter(_columns(outputs))
        return map_tree(lambda _: self._leaf(*next(columns)), outputs[0])

    def _leaf(self, name: str, parts: Sequence[Any]) -> Any:
        first = parts[0]
        if not isinstance(first, Tensor):
            return first
        way = self.ways.get(name, Way.NONE)
        if way is Way.ROWS:
            return _cat(name, parts)
        if way is Way.NONE:
            return Unjoined(
                f"{_named(name)} has shape {tuple(first.shape)} in a micro-batch and not its rows "
                "on dim 0 alone, so it is not part of the whole batch's; compute it in the "
                "WholeBatchLoss, from outputs with one row per example"
            )
        for microbatch, part in enumerate(parts):
            if not _same_bits(first, part):
                return Unjoined(
                    f"{_named(name)} has no rows, and differs between micro-batches 0 and "
                    f"{microbatch}, so the whole batch's is not known; make it depend on "
                    "parameters alone, or give it one row per example"
                )
        return first.view_as(first)


class Unjoined:
    """Stands for an output that the whole batch's cannot be made of; any use of it raises.

    Args:
        said: why, and what to do.
    """

    def __init__(self, said: str) -> None:
        self.__dict__["_said"] = said

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise LossError(self.__dict__["_said"])

    @classmethod
    def __torch_function__(
        cls, function: object, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> NoReturn:
        del function, types
        found = [leaf for leaf in leaves((args, kwargs or {})) if isinstance(leaf, cls)]
        raise LossError(found[0].__dict__["_said"])


class WholeBatch:
    """The outputs of one pass on the last stage, and the gradients that the loss gives them.

    Args:
        joining: how to join them.
        num_microbatches: of the pass.
        training: whether gradients are wanted.
    """

    def __init__(self, joining: Joining, num_microbatches: int, *, training: bool) -> None:
        self._joining = joining
        self._num_microbatches = num_microbatches
        self._training = training
        self._entries: dict[int, Any] = {}

    def add(self, microbatch: int, output: Any) -> None:
        """Take in what the model gave for one micro-batch; its graph is not looked at."""
        self._entries[microbatch] = map_tree(self._entry, output)

    @property
    def is_complete(self) -> bool:
        """Whether every micro-batch is in."""
        return len(self._entries) == self._num_microbatches

    def output(self) -> Any:
        """Return the whole batch's; see ``Joining.output``."""
        return self._joining.output([self._entries[mb] for mb in range(self._num_microbatches)])

    def ends(self, microbatch: int, output: Any) -> list[tuple[Tensor, Tensor]]:
        """Let a micro-batch go: its ``output``'s tensors and the gradients to begin with."""
        pairs = zip(leaves(output), leaves(self._entries.pop(microbatch)), strict=True)
        return [
            (tensor, entry.grad)
            for tensor, entry in pairs
            if isinstance(tensor, Tensor) and tensor.requires_grad and entry.grad is not None
        ]

    def _entry(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        entry = leaf.detach()
        wanted = self._training and (entry.is_floating_point() or entry.is_complex())
        return entry.requires_grad_() if wanted else entry


def find_ways(one: Any, two: Any) -> dict[str, Way]:
    """Return how to join, from the outputs of a batch and of the same batch twice.

    Raises:
        LossError: if they do not have the same leaves.
    """
    found: dict[str, Way] = {}
    for name, (first, second) in _columns([one, two]):
        if isinstance(first, Tensor):
            found[name] = _way(tuple(first.shape), tuple(second.shape))
    return found


def _way(one: tuple[int, ...], two: tuple[int, ...]) -> Way:
    if one == two:
        return Way.SAME
    is_rows = one[1:] == two[1:] and one[:1] and two[0] == 2 * one[0]
    return Way.ROWS if is_rows else Way.NONE


def join_batch(parts: Sequence[Any], split: Split | None) -> Any:
    """Undo ``split_batch``.

    Raises:
        BatchError: if parts do not fit together.
    """
    columns = iter(_columns(parts))

    def join(_: Any) -> Any:
        name, found = next(columns)
        first = found[0]
        dim = dim_of_rows(name, first, split) if isinstance(first, Tensor) else None
        if dim is not None:
            try:
                return torch.cat(list(found), dim)
            except RuntimeError as error:
                msg = f"{name} of the micro-batches cannot be joined for the loss: {error}"
                raise BatchError(msg) from error
        if not all(_same(first, other) for other in found):
            msg = f"{name} has no rows, and is not the same in every micro-batch; give it rows"
            raise BatchError(msg)
        return first

    return map_tree(join, parts[0])


def _columns(trees: Sequence[Any]) -> list[tuple[str, tuple[Any, ...]]]:
    """Return (name, leaf of each tree), in the order of ``map_tree``."""
    found = [leaves(tree) for tree in trees]
    if len({len(column) for column in found}) > 1:
        numbers = ", ".join(str(len(column)) for column in found)
        msg = f"micro-batches differ in how many values they have: {numbers}; expected the same"
        raise LossError(msg)
    names = [name for name, _ in named_leaves(trees[0])]
    if len(names) != len(found[0]):
        names = [str(index) for index in range(len(found[0]))]
    return list(zip(names, zip(*found, strict=True), strict=True))


def _cat(name: str, parts: Sequence[Tensor]) -> Tensor:
    try:
        return torch.cat(list(parts))
    except RuntimeError as error:
        msg = f"{_named(name)} of the micro-batches cannot be joined on dim 0: {error}"
        raise LossError(msg) from error


def _named(name: str) -> str:
    return "the output" if name == "batch" else f"output {name!r}"


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and _same_bits(one, other)
    return one is other or bool(one == other)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if one is other:
        return True
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    pair = (t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (one, other))
    return torch.equal(*pair)
