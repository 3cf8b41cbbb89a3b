"""Attributes of blocks: only a block's own call may change them.

A stage calls its blocks and runs glue on tensors. What glue, or another block, sets on a block in
Python would not be set there: building puts it back, and other stages are elsewhere.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from intandem.recorder import refusals
from intandem.recorder.locations import user_place
from intandem.recorder.python_state import CONTAINERS, OF_MODULES

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping

    from torch import nn

_NUMBERS = (int, float, complex, str)
_WATCHED = (*_NUMBERS, Tensor, *CONTAINERS)


class AttributesOfBlocks:
    """Numbers, words, tensors and containers of them in attributes of blocks.

    Flags are left out: libraries mark modules that they have made ready.

    Args:
        blocks: modules kept whole and what lies inside them, with their names.
        modules_of: returns a block and the modules in it.
    """

    def __init__(
        self,
        blocks: Mapping[nn.Module, str],
        modules_of: Callable[[nn.Module], Iterable[nn.Module]],
    ) -> None:
        self._blocks = blocks
        self._modules_of = modules_of
        self._known = {module: _Attributes.of(module) for module in blocks}
        self._set_tensors: list[tuple[str, str, Tensor]] = []

    def call_begins(self, block: nn.Module) -> None:
        """Refuse what has changed since the last call of ``block``.

        Raises:
            CaptureError: naming the attribute, and the line of the call.
        """
        self._check(self._modules_of(block), lambda: f"before it is called at {user_place()}")

    def call_ends(self, block: nn.Module) -> None:
        """Take what ``block`` has set on itself for what is there."""
        for module in self._modules_of(block):
            known = self._known.get(module)
            if known is not None and not known.still_hold(module):
                self._known[module] = _Attributes.of(module)

    def run_ends(self) -> None:
        """Refuse what has been changed after the last calls; see ``call_begins``."""
        self._check(self._known, lambda: "after it was called")

    def settle(self, is_derived: Callable[[Tensor], bool]) -> None:
        """Refuse tensors that were set on blocks, but for what depends on the batch alone.

        Such a table is made again by whoever needs it.

        Args:
            is_derived: tells whether a tensor is such a value.

        Raises:
            CaptureError: naming the attribute.
        """
        for name, when, tensor in self._set_tensors:
            if not is_derived(tensor):
                raise refusals.block_attribute_set(name, when)

    def _check(self, modules: Iterable[nn.Module], when: Callable[[], str]) -> None:
        for module in modules:
            known = self._known.get(module)
            if known is not None and not known.still_hold(module):
                self._look(module, known, when)

    def _look(self, module: nn.Module, known: _Attributes, when: Callable[[], str]) -> None:
        now = _Attributes.of(module)
        before, after = known.signs(), now.signs()
        for key in [key for key in after if after[key] != before.get(key)]:
            name, value = f"{self._blocks[module]}.{key}", vars(module)[key]
            if not isinstance(value, Tensor):
                raise refusals.block_attribute_set(name, when())
            self._set_tensors.append((name, when(), value))
        self._known[module] = now


class _Attributes(NamedTuple):
    """A module's attributes at one time, with signs of the containers among them."""

    keys: list[str]
    values: list[object]
    contents: dict[str, Hashable]

    @classmethod
    def of(cls, module: nn.Module) -> _Attributes:
        """Return those of ``module`` now."""
        now = vars(module)
        contents = {
            key: _sign(value)
            for key, value in now.items()
            if key not in OF_MODULES and issubclass(type(value), CONTAINERS)
        }
        return cls(list(now), list(now.values()), contents)

    def still_hold(self, module: nn.Module) -> bool:
        """Tell, fast, whether all are the same objects, and none could have changed inside."""
        now = vars(module)
        return (
            not self.contents
            and list(now) == self.keys
            and all(map(operator.is_, now.values(), self.values))
        )

    def _sign_of(self, key: str, value: object) -> Hashable:
        return self.contents[key] if key in self.contents else _sign(value)

    def signs(self) -> dict[str, Hashable]:
        """Return what changes when an attribute does, by its name."""
        return {
            key: sign
            for key, value in zip(self.keys, self.values, strict=True)
            if key not in OF_MODULES and _may_be_watched(type(value))
            if (sign := self._sign_of(key, value)) is not None
        }


def _may_be_watched(kind: type) -> bool:
    """Tell by its type; asking the object may be slow (configurations of Hugging Face)."""
    return kind is not bool and issubclass(kind, _WATCHED)


def _sign(value: object) -> Hashable:
    """Return what changes when ``value`` does; None for what is not watched."""
    if isinstance(value, bool):
        return None
    if isinstance(value, _NUMBERS):
        return value
    if isinstance(value, Tensor):
        return ("tensor", id(value))
    if isinstance(value, dict):
        return tuple((repr(key), _sign(item)) for key, item in value.items())
    return tuple(map(_sign, value)) if isinstance(value, CONTAINERS) else None
