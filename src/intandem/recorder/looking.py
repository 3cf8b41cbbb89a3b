"""What a call that is kept whole does inside: it is looked at, and not written down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from intandem.recorder import refusals
from intandem.recorder.functions import (
    OF_NOTE,
    function_name,
    is_gradient_hook,
    is_random,
    updates_statistics,
)
from intandem.recorder.locations import user_place
from intandem.recorder.trees import tensors_in

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from torch import Tensor

    from intandem.recorder.inner import MadeInside
    from intandem.recorder.skeleton import Skeleton
    from intandem.recorder.values import Values


class Looking:
    """Looks at the torch functions inside of one call after the other.

    Args:
        attr_of: names of the model's parameters and buffers, by id.
        values: of the recording.
        made: what was made inside.
        skeleton: of the recording.

    Attributes:
        own_backward: whether any call so far has shown a gradient to a function of the user's.
        is_open: whether a call runs.
        registered: names of the parameters and buffers that it has read.
        read: ids of the tensors that it has read.
        drew: whether it has called a function that draws.
        recomputes: whether autograd may run it, or a part of it, again.
    """

    def __init__(
        self, attr_of: Mapping[int, str], values: Values, made: MadeInside, skeleton: Skeleton
    ) -> None:
        self._attr_of = attr_of
        self._value_of = values.value_of
        self._made = made
        self._skeleton = skeleton
        self._real_of = skeleton.real_of
        self._given: Collection[int] = ()
        self.own_backward = False
        self.is_open = False
        self.expect(draws=False, recomputes=False)

    def expect(self, *, draws: bool, recomputes: bool) -> None:
        """Begin anew, with what is known of a call before it runs."""
        self.drew = draws
        self.recomputes = recomputes
        self.registered: set[str] = set()
        self.read: set[int] = set()

    def open(self, given: Collection[Tensor]) -> None:
        """A call that is given these tensors runs from now on."""
        self._given = set(map(id, given))
        self.is_open = True

    def close(self) -> None:
        """It has run."""
        self.is_open = False

    def on_function(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call a torch function, and note what it reads and makes.

        Raises:
            CaptureError: if it reads a tensor that the call was not given.
        """
        # asked of every function that blocks call
        is_of_note = getattr(function, "__name__", "") in OF_NOTE
        is_computed = is_of_note and self._draws(function, args, kwargs)
        if torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
            self.recomputes = True
        attr_of, real_of, read = self._attr_of, self._real_of, self.read
        for leaf in tensors_in(*args, *kwargs.values()) if kwargs else tensors_in(*args):
            key = id(leaf)
            real = id(real_of.get(key, leaf)) if real_of else key
            read.add(real)
            if (name := attr_of.get(real)) is not None:
                self.registered.add(name)
                is_computed = True
            elif key in self._given:
                is_computed = True
            else:
                was_computed, is_anothers = self._made.origin(leaf)
                if is_anothers or key in self._value_of:
                    raise refusals.reached_through_object(function_name(function), user_place())
                is_computed = is_computed or was_computed or real != key
        result = function(*args, **kwargs)
        self._made.note(result, is_computed=is_computed)
        return result

    def _draws(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> bool:
        """Note draws, statistics and hooks; tell whether the call is random."""
        self.own_backward |= is_gradient_hook(function)
        with torch._C.DisableTorchFunction():
            is_drawn = is_random(function, args, kwargs)
            self.drew |= is_drawn
            if updates_statistics(function, args, kwargs):
                self._skeleton.notice_statistics(tensors_in(args, kwargs))
        return is_drawn
