"""Tensors made inside blocks that are used outside them without being returned.

Hooks that collect what modules deep inside return (routers' logits, attention weights) and modules
that leave a tensor in an attribute (a loss of their own) hand tensors over like this. Where such a
tensor can be found again each time the block runs, it becomes one more value that the block makes.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from intandem.recorder import refusals
from intandem.recorder.graph import Inner
from intandem.recorder.locations import user_place
from intandem.recorder.modules import named_modules
from intandem.recorder.python_state import OF_MODULES
from intandem.recorder.trees import leaves, tensors_in

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from torch import nn

    from intandem.recorder.graph import Call
    from intandem.recorder.values import Values


class _Made(NamedTuple):
    """A tensor made inside: in which run, and whether from tensors or out of nothing."""

    tensor: weakref.ref[Tensor]
    run: int
    is_computed: bool
    returned: _Returned | None = None
    held: _Held | None = None


class _Returned(NamedTuple):
    """Which module returned it, in which of its calls, as which leaf."""

    module: nn.Module
    call: int
    leaf: int


class _Held(NamedTuple):
    """Which module holds it when the block has run, in which attribute."""

    module: nn.Module
    attribute: str


class MadeInside:
    """What was made inside blocks, and where.

    Args:
        modules: all that are in blocks.
        modules_of: returns a block and the modules in it.
    """

    def __init__(
        self,
        modules: Collection[nn.Module],
        modules_of: Callable[[nn.Module], Iterable[nn.Module]],
    ) -> None:
        self._modules = modules
        self._modules_of = modules_of
        self._made: dict[int, _Made] = {}
        self._block: nn.Module | None = None
        self._run = 0
        self._calls: Counter[nn.Module] = Counter()
        self._blocks: dict[int, nn.Module | None] = {}
        self._recorded: dict[int, tuple[int, nn.Module]] = {}
        self._no_tensors: set[type] = set()

    def enter(self, block: nn.Module | None) -> None:
        """A block begins to run, or something else that is kept whole."""
        self._block = block
        self._run += 1
        self._blocks[self._run] = block
        if self._calls:
            self._calls = Counter()

    def recorded(self, call: int) -> None:
        """What has run is call ``call`` of the recording."""
        if self._block is None:
            return
        self._recorded[self._run] = call, self._block
        for module in self._modules_of(self._block):
            if self._no_tensors.issuperset(map(type, vars(module).values())):
                continue
            for key, value in vars(module).items():
                if not isinstance(value, Tensor):
                    self._no_tensors.add(type(value))
                elif key not in OF_MODULES and self._is_new(value):
                    made = self._made[id(value)]
                    self._made[id(value)] = made._replace(held=_Held(module, key))

    def note(self, result: Any, *, is_computed: bool) -> None:
        """A torch function inside returned ``result``.

        Args:
            result: of any kind.
            is_computed: whether from what was given, registered or computed itself.
        """
        for leaf in (result,) if type(result) is Tensor else tensors_in(result):
            made = self._made.get(id(leaf))
            if made is None or made.run != self._run or made.tensor() is not leaf:
                self._made[id(leaf)] = _Made(weakref.ref(leaf), self._run, is_computed)

    def note_module(self, module: nn.Module, output: Any) -> None:
        """A module inside returned ``output``."""
        if self._block is None or module not in self._modules:
            return
        number = self._calls.get(module, 0)
        self._calls[module] = number + 1
        for index, leaf in enumerate((output,) if type(output) is Tensor else leaves(output)):
            if not isinstance(leaf, Tensor):
                continue
            made = self._made.get(id(leaf))
            is_new = made is not None and made.run == self._run and made.tensor() is leaf
            if made is not None and is_new and made.returned is None:
                made = _Made(*made[:3], _Returned(module, number, index), made.held)
                self._made[id(leaf)] = made

    def origin(self, tensor: Tensor) -> tuple[bool, bool]:
        """Tell whether ``tensor`` was made inside from tensors, and if so, by another block.

        A table that is made out of nothing and kept for all blocks is none's.
        """
        made = self._made.get(id(tensor))
        if made is None or not made.is_computed or made.tensor() is not tensor:
            return False, False
        return True, made.run != self._run and self._blocks[made.run] is not self._block

    def knows(self, tensor: Tensor) -> bool:
        """Tell whether ``tensor`` was made inside a block."""
        made = self._made.get(id(tensor))
        return made is not None and made.tensor() is tensor

    def adopt(self, tensor: Tensor, calls: list[Call], values: Values) -> int:
        """Make ``tensor`` one more value that the call of its block makes; return the value.

        Raises:
            CaptureError: if it is not found again when the block runs.
        """
        found = self._find(tensor)
        if found is not None:
            index, place = found
            value = values.add(tensor, producer=index)
            storage = values.drafts[value].storage
            if not any(storage in later.written for later in calls[index + 1 :]):
                inner = (*calls[index].inner, (place, value))
                calls[index] = dataclasses.replace(calls[index], inner=inner)
                return value
        raise refusals.left_inside(user_place())

    def _find(self, tensor: Tensor) -> tuple[int, Inner] | None:
        """Return the call of the block that made ``tensor``, and where it is found again."""
        _, run, _, returned, held = self._made[id(tensor)]
        place = returned or held
        if run not in self._recorded or place is None:
            return None
        call, block = self._recorded[run]
        names = (name for name, module in named_modules(block) if module is place.module)
        name = next(names, None)
        if name is None:
            return None
        if isinstance(place, _Returned):
            return call, Inner(name, place.call, place.leaf)
        return call, Inner(name, attribute=place.attribute)

    def _is_new(self, tensor: Tensor) -> bool:
        return self.knows(tensor) and self._made[id(tensor)].run == self._run
