"""What a recording is: calls on values, in the order the model's own ``forward`` made them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from intandem.recorder.trees import Leaf, leaves

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


@dataclass(frozen=True, slots=True)
class Ref(Leaf):
    """Stands for a value of the recording in a call's arguments."""

    value: int


@dataclass(frozen=True, slots=True)
class Attr(Leaf):
    """Stands for a parameter or buffer that glue uses, by the user's name for it."""

    name: str


class CallKind(Enum):
    """What was called."""

    BLOCK = "block"
    """A module kept whole."""
    GLUE = "glue"
    """A torch function called between blocks."""
    OPAQUE = "opaque"
    """A function that hides its own autograd, kept whole (``autograd.Function.apply``)."""


@dataclass(frozen=True, slots=True)
class Autocast:
    """Mixed-precision state that a call ran under, for one device type."""

    device_type: str
    enabled: bool
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Site:
    """Where a random draw happens, by names that do not depend on the cut.

    Attributes:
        name: the block's name, or ``glue``.
        call: how many calls of that name (for glue: random calls) came before it.
        recomputed: whether autograd may run it again in its own backward
            (``torch.utils.checkpoint``), with the default generators' states put back.
        python: whether Python's or NumPy's generators are drawn from.
    """

    name: str
    call: int
    recomputed: bool = False
    python: bool = False


@dataclass(frozen=True, slots=True)
class Inner:
    """Where a block leaves a tensor that is used outside it without being returned.

    Attributes:
        module: name within the block of the module that returned it or holds it; empty for the
            block itself.
        call: how many calls of that module, within one of the block, came before.
        leaf: which leaf of what the module returned.
        attribute: of the module, that holds it when the block has run; None if it was returned.
    """

    module: str
    call: int = 0
    leaf: int = 0
    attribute: str | None = None


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor that a call made or the batch brought.

    Attributes:
        producer: index of the call that made it, or -1 for a tensor of the batch.
        shape: its shape when recorded.
        dtype: its dtype.
        num_bytes: its size.
        requires_grad: whether a gradient flows back through it.
        derived: made from the batch, buffers and keyed draws alone, so that any stage can make
            it again.
        storage: number of the memory it lives in; views of one tensor share it.
    """

    producer: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    num_bytes: int
    requires_grad: bool
    derived: bool
    storage: int


@dataclass(frozen=True, slots=True)
class Call:
    """One recorded call.

    Attributes:
        kind: block, glue or opaque call.
        name: the module's name in the user's model, or the function's.
        target: the function; None for a block, which is found by its name.
        args: positional arguments, with Ref and Attr in place of tensors.
        kwargs: keyword arguments, likewise.
        outputs: value made by each leaf of the result; None for leaves that are not tensors.
        returned: the leaves of the result that are not tensors; None in place of tensors.
        renewed: (old, new) values that share memory with something this call wrote to.
        written: storages this call wrote to in place.
        parameters: names of the parameters it uses.
        buffers: names of the buffers it may read.
        updates: those of them that recording it changed.
        grad_enabled: whether it ran with gradients on.
        autocast: mixed-precision states it ran under; empty when all are off.
        site: where it draws random numbers, or None when it draws none.
        anchor: a name for it that other recordings of the model share: the block's, or the
            function's with its parameters.
        call: how many calls of the same anchor came before it in this recording.
        location: ``file:line`` of the user's code.
        unread: values that a block is given and hands to no torch function.
        inner: (place, value) of tensors made inside a block that others read without its
            returning them.
    """

    kind: CallKind
    name: str
    target: Callable[..., Any] | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[int | None, ...]
    returned: tuple[object, ...]
    renewed: tuple[tuple[int, int], ...]
    written: tuple[int, ...]
    parameters: tuple[str, ...]
    buffers: tuple[str, ...]
    updates: tuple[str, ...]
    grad_enabled: bool
    autocast: tuple[Autocast, ...]
    site: Site | None
    anchor: str
    call: int
    location: str
    unread: tuple[int, ...] = ()
    inner: tuple[tuple[Inner, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Guard:
    """A tensor that ``forward`` turned into a Python value; the recording holds while it is equal.

    Attributes:
        target: the function that did it, such as ``Tensor.item``.
        args: its arguments, with Ref and Attr in place of tensors.
        kwargs: likewise.
        outcome: the Python value it gave.
        location: ``file:line`` of the user's code.
        module: name of the innermost module that it happened in; empty for the model itself.
    """

    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outcome: object
    location: str
    module: str = ""


@dataclass(frozen=True, slots=True)
class Graph:
    """A recorded ``forward``.

    Attributes:
        values: every tensor; the first ``len(inputs)`` are the batch's.
        inputs: path of each tensor of the batch, such as ``input_ids``.
        calls: in the order they were made.
        guards: Python values the recording depends on.
        output: what ``forward`` returned, with Ref and Attr in place of tensors.
        unused: names of parameters that no call uses.
        draws_python: whether it holds what Python's or NumPy's generators gave, so that it
            serves one micro-batch of one step.
        chances: whether draws decided which calls there are, or may have.
        own_backward: whether code of the user's takes part in backward: hooks of tensors, functions
            with a backward of their own, between blocks or inside them.
    """

    values: tuple[Value, ...]
    inputs: tuple[str, ...]
    calls: tuple[Call, ...]
    guards: tuple[Guard, ...]
    output: Any
    unused: tuple[str, ...]
    draws_python: bool = False
    chances: bool = False
    own_backward: bool = False

    def __str__(self) -> str:
        blocks = [call for call in self.calls if call.kind is CallKind.BLOCK]
        lines = [f"{len(blocks)} blocks, {len(self.calls) - len(blocks)} glue calls"]
        for call in blocks:
            out = [self.values[v] for v in call.outputs if v is not None]
            shapes = ", ".join(f"{tuple(v.shape)} {str(v.dtype)[6:]}" for v in out)
            lines.append(f"  {call.name:<32} {len(call.parameters):>3} parameters -> {shapes}")
        return "\n".join(lines)


def draws(graph: Graph) -> bool:
    """Tell whether running ``graph`` draws random numbers."""
    return graph.draws_python or any(call.site is not None for call in graph.calls)


def refs(*trees: Any) -> list[int]:
    """Return the values that argument templates mention, in order."""
    return [leaf.value for tree in trees for leaf in leaves(tree) if isinstance(leaf, Ref)]


def reads_of(call: Call) -> list[int]:
    """Return the values that ``call`` reads."""
    return [*refs(call.args, call.kwargs), *(old for old, _ in call.renewed)]


def attrs(*trees: Any) -> list[str]:
    """Return the parameters and buffers that argument templates mention, in order."""
    return [leaf.name for tree in trees for leaf in leaves(tree) if isinstance(leaf, Attr)]
