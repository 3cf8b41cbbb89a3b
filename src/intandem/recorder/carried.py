"""State that calls hand on to later calls where a recording could not see that they do."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch

from intandem.errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import Tensor, nn

    from intandem.recorder.graph import Graph


def refuse_overlapping_buffers(buffers: Mapping[str, Tensor], written: Collection[str]) -> None:
    """Refuse buffers that are views of the same memory and are written to.

    Raises:
        CaptureError: naming two of them.
    """
    for name in sorted(set(written) & set(buffers)):
        one = buffers[name]
        for other, tensor in buffers.items():
            if tensor is not one and _overlap(one, tensor):
                msg = (
                    f"forward writes to the buffer {name}, which shares memory with the buffer "
                    f"{other}, so a stage could read what another has written; register the same "
                    "tensor under both names, or give each its own memory"
                )
                raise CaptureError(msg)


def refuse_counting(
    model: nn.Module, graph: Graph, before: Mapping[nn.Module, Mapping[str, tuple[Any, Any]]]
) -> None:
    """Refuse modules that are called several times and count in plain attributes meanwhile.

    Every call has a module of its own, with the attributes of the first at the start of a step.

    Args:
        model: the user's module.
        graph: the recording.
        before: attributes of all modules before it was made: (value, copy of its content).

    Raises:
        CaptureError: naming the attribute.
    """
    calls = Counter(call.name for call in graph.calls if call.target is None)
    for block in (name for name, number in calls.items() if number > 1):
        for path, module in model.get_submodule(block).named_modules(prefix=block):
            for key, (value, _) in before.get(module, {}).items():
                now = vars(module).get(key)
                if _is_number(value) and _is_number(now) and now != value:
                    msg = (
                        f"{block} is called {calls[block]} times and sets {path}.{key} from "
                        f"{value!r} to {now!r}, which later calls, on other stages, would not "
                        "see; keep it in a buffer that is written to in place"
                    )
                    raise CaptureError(msg)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | complex) and not isinstance(value, bool)


def _overlap(one: Tensor, other: Tensor) -> bool:
    if not one.layout == other.layout == torch.strided:
        return False
    if one.untyped_storage().data_ptr() != other.untyped_storage().data_ptr():
        return False
    first, second = sorted([_span(one), _span(other)])
    return bool(one.numel() and other.numel()) and second[0] < first[1]


def _span(tensor: Tensor) -> tuple[int, int]:
    """Return the first byte and the byte after the last that a tensor may use."""
    reach = sum((s - 1) * t for s, t in zip(tensor.size(), tensor.stride(), strict=True))
    start = int(tensor.storage_offset()) * tensor.element_size()
    return start, start + int(reach + 1) * tensor.element_size()
