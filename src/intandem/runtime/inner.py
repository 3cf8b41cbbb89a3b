"""Reading what a block leaves inside it, each time it runs; see ``recorder.inner``."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from intandem.errors import CaptureError
from intandem.recorder.trees import leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from intandem.recorder.graph import Inner


class WithInner(NamedTuple):
    """What a block returned, and what it left inside, by place."""

    output: Any
    tensors: tuple[Tensor, ...]


def reading(
    find: Callable[[], Callable[..., Any]], name: str, places: Sequence[Inner]
) -> Callable[[], Callable[..., WithInner]]:
    """Return what finds a function that runs a block and reads tensors that it leaves inside.

    Args:
        find: returns the block.
        name: of the block.
        places: where the tensors are.
    """

    def call(*args: Any, **kwargs: Any) -> WithInner:
        block: nn.Module = find()  # type: ignore[assignment]
        reader = _Reader(block, places)
        output = reader.run(args, kwargs)
        found = [reader.tensor(place) for place in places]
        tensors = tuple(tensor for tensor in found if tensor is not None)
        if len(tensors) != len(places):
            place = places[found.index(None)]
            msg = (
                f"{name} did not leave a tensor in {place} this time, as it did when it was "
                "recorded, and what follows uses it; return it from the block"
            )
            raise CaptureError(msg)
        return WithInner(output, tensors)

    return lambda: call


class _Reader:
    """Looks at the modules of a block during one call of it, in this thread."""

    def __init__(self, block: nn.Module, places: Sequence[Inner]) -> None:
        self._block = block
        self._wanted: dict[str, set[int]] = defaultdict(set)
        for place in places:
            if place.attribute is None:
                self._wanted[place.module].add(place.call)
        self._thread = threading.get_ident()
        self._calls: Counter[str] = Counter()
        self._returned: dict[tuple[str, int], list[Any]] = {}

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the block; other threads may be calling modules in it."""
        with ExitStack() as hooks:
            for name in self._wanted:
                module = self._block.get_submodule(name)
                hooks.callback(module.register_forward_hook(self._hook(name)).remove)
            return self._block(*args, **kwargs)

    def tensor(self, place: Inner) -> Tensor | None:
        """Return what is in a place, once the block has run."""
        if place.attribute is not None:
            found = getattr(self._block.get_submodule(place.module), place.attribute, None)
        else:
            returned = self._returned.get((place.module, place.call), [])
            found = returned[place.leaf] if place.leaf < len(returned) else None
        return found if isinstance(found, Tensor) else None

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            del module, args
            if threading.get_ident() != self._thread:
                return
            number = self._calls[name]
            self._calls[name] += 1
            if number in self._wanted[name]:
                self._returned[name, number] = leaves(output)

        return hook
