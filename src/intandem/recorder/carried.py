"""State that calls hand on to later calls where a recording could not see that they do."""

from __future__ import annotations

from collections import Counter, defaultdict
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import torch

from intandem.errors import CaptureError
from intandem.recorder.locations import user_place
from intandem.recorder.python_state import attributes_of, children
from intandem.recorder.trees import ATOMS, PLAIN

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from torch import Tensor, nn

    from intandem.recorder.graph import Graph


def refuse_overlapping_buffers(buffers: Mapping[str, Tensor], written: Collection[str]) -> None:
    """Refuse buffers that are views of the same memory and are written to.

    Raises:
        CaptureError: naming two of them.
    """
    by_memory: dict[int, list[str]] = defaultdict(list)
    for name, tensor in buffers.items():
        if tensor.layout == torch.strided:
            by_memory[tensor.untyped_storage().data_ptr()].append(name)
    for name in sorted(set(written) & set(buffers)):
        one = buffers[name]
        found = by_memory[one.untyped_storage().data_ptr()] if one.layout == torch.strided else []
        for other in found:
            if buffers[other] is not one and _overlap(one, buffers[other]):
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


_NO_PLAIN_OBJECTS = (torch.nn.Module, torch.Tensor, type, ModuleType, FunctionType)


class SharedObjects:
    """Numbers in Python objects that several blocks hold, before and after a run.

    What one block sets in such an object another could read, and would not where it runs on another
    stage or is ahead by a micro-batch.

    Args:
        blocks: modules kept whole and what lies inside them, with their names.
        attributes: of modules now, where they are known: (value, copy of its content).
    """

    def __init__(
        self,
        blocks: Mapping[nn.Module, str],
        attributes: Mapping[nn.Module, Mapping[str, tuple[Any, Any]]],
    ) -> None:
        holders: dict[int, dict[str, str]] = {}
        self._objects: dict[int, object] = {}
        outer = ""
        for name, module in sorted((name, module) for module, name in blocks.items()):
            outer = outer if outer and name.startswith(f"{outer}.") else name
            known = attributes[module] if module in attributes else attributes_of(module)
            for key, (value, _) in known.items():
                if _is_plain_object(value):
                    self._objects[id(value)] = value
                    holders.setdefault(id(value), {}).setdefault(outer, f"{name}.{key}")
        self._shared = {
            key: list(found.values()) for key, found in holders.items() if len(found) > 1
        }
        self._before = {key: _numbers(self._objects[key]) for key in self._shared}

    def check(self) -> None:
        """Refuse numbers that have changed.

        Raises:
            CaptureError: naming the attribute and two of its holders.
        """
        for key, (one, other, *_) in self._shared.items():
            after = _numbers(self._objects[key])
            for name in [name for name in after if after[name] != self._before[key].get(name)]:
                msg = (
                    f"forward sets {one}.{name} to {after[name]!r} in an object that {other} holds "
                    "as well, so that a block could read what one on another stage has set; return "
                    "it as a tensor, and pass it as an argument"
                )
                raise CaptureError(msg)


_DEPTH = 4
_MAX_ITEMS = 1024


def refuse_filling(name: str, block: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``block``, which refuses to set Python values in containers that it is given.

    What is given to later calls would hold the recorded values.

    Args:
        name: of the block.
        block: a call of it.

    Returns:
        The same call; it raises CaptureError that names the block, the value and the line.
    """

    def called(*args: Any, **kwargs: Any) -> Any:
        given = [arg for arg in (*args, *kwargs.values()) if type(arg) not in ATOMS]
        before = _held(given)
        output = block(*args, **kwargs)
        if before is None or (after := _held(given)) == before:
            return output
        old, new = before, after or {}
        path = next(path for path in {**new, **old} if old.get(path) != new.get(path))
        was, now = (repr(found[path][1]) if path in found else "nothing" for found in (old, new))
        kind = type(given[path[0]]).__name__
        where = "".join(f"[{key}]" for key in path[1:])
        msg = (
            f"{name} sets {where} from {was} to {now} in a {kind} that it is given, at "
            f"{user_place()}, and later calls would be given what was recorded; return it as a "
            "tensor, or keep all in one module (blocks=[...])"
        )
        raise CaptureError(msg)

    return called


_Path = tuple[Any, ...]


def _held(given: list[Any]) -> dict[_Path, tuple[type, Any]] | None:
    """Return the plain values in containers and objects, with their types, by where they are.

    None if nothing can hold any.
    """
    found: dict[_Path, tuple[type, Any]] = {}
    seen: set[int] = set()
    for number, arg in enumerate(given):
        _look_into(arg, (number,), found, seen)
    return found if seen else None


def _look_into(
    holder: Any, path: _Path, found: dict[_Path, tuple[type, Any]], seen: set[int]
) -> None:
    if id(holder) in seen or isinstance(holder, _NO_PLAIN_OBJECTS) or callable(holder):
        return
    held = children(holder)
    if held is None:
        return
    seen.add(id(holder))
    for key, child in held[:_MAX_ITEMS]:
        if isinstance(child, PLAIN):
            found[*path, key] = (type(child), child)
        elif len(path) < _DEPTH:
            _look_into(child, (*path, key), found, seen)


def _is_plain_object(value: object) -> bool:
    kind = type(value)  # not asked of the object: libraries make that slow
    return kind.__dictoffset__ != 0 and not issubclass(kind, _NO_PLAIN_OBJECTS)


def _numbers(holder: object) -> dict[str, object]:
    return {key: value for key, value in vars(holder).items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | complex) and not isinstance(value, bool)


def _overlap(one: Tensor, other: Tensor) -> bool:
    first, second = sorted([_span(one), _span(other)])
    return bool(one.numel() and other.numel()) and second[0] < first[1]


def _span(tensor: Tensor) -> tuple[int, int]:
    """Return the first byte and the byte after the last that a tensor may use."""
    reach = sum((s - 1) * t for s, t in zip(tensor.size(), tensor.stride(), strict=True))
    start = int(tensor.storage_offset()) * tensor.element_size()
    return start, start + int(reach + 1) * tensor.element_size()
