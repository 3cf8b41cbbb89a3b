"""What a recording draws from.

[Note: draws of Python] What Python's or NumPy's generators give between blocks is in the recording
for good, so such a recording serves one micro-batch of one step. Both are seeded when ``forward``
begins and after each block, so that what is drawn there does not depend on which blocks ran here.

[Note: draws of torch] Whether a torch function between blocks draws is known by its name, so the
state of torch's generator is looked at before and after blocks, and calls that are known to draw.
Where it has changed since the last look, something else draws or seeds, and the recording begins
anew, with a look before and after every call.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Protocol

import torch

from intandem.errors import CaptureError
from intandem.recorder.graph import Site
from intandem.recorder.python_state import python_generators_state

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import Tensor


class Draws(Protocol):
    """The random draws of one micro-batch of one step.

    A ``forward`` may decide by a draw what it calls (a layer that is dropped), so a recording is
    made with the draws that the micro-batch it is for will be given.
    """

    def random(self, site: Site) -> AbstractContextManager[object]:
        """Return the context under which ``site`` draws."""
        ...

    def seed_python(self, number: int) -> bool:
        """Seed Python's and NumPy's generators for what follows the block of that number.

        Returns:
            Whether they are other than they were.
        """
        ...


class PythonDrawnError(CaptureError):
    """A recording has to begin anew, with Python's generators looked at after every block."""


class UnseenDrawsError(CaptureError):
    """A recording has to begin anew, with torch's generator looked at around every call."""


class AnyDraws:
    """Draws of the generators as they are, for a recording that is looked at and not run."""

    def random(self, site: Site) -> AbstractContextManager[object]:
        """Change nothing."""
        del site
        return nullcontext()

    def seed_python(self, number: int) -> bool:
        """Change nothing."""
        del number
        return False


class Drawing:
    """What is drawn between the blocks of one recording.

    Python's generators are large. Where nothing seeds them, they are looked at once, at the end.

    Args:
        draws: to be made; None for whatever the generators give, if nothing draws from Python's.
        every_call: look at torch's generator around every call; see [Note: draws of torch].
    """

    def __init__(self, draws: Draws | None, *, every_call: bool = False) -> None:
        self.keyed: set[int] = set()
        self.python_between_blocks = False
        self._looks_often = draws is not None
        self._draws = draws or AnyDraws()
        self._num_glue = 0
        self._number = 0
        self._state = python_generators_state()
        self._begin()
        self._every_call = every_call
        self._is_looked_at = False
        self._unseen = False
        self._torch_state = _torch_state()

    def before_call(self, *, may_draw: bool) -> None:
        """Look at torch's generator, if a call may draw from it."""
        self._is_looked_at = may_draw or self._every_call
        if self._is_looked_at:
            self._torch_drew_unseen()

    def after_call(self) -> bool:
        """Tell whether the call has drawn from torch's generator."""
        return self._is_looked_at and self._torch_drew()

    def of_glue(self, index: int) -> AbstractContextManager[object]:
        """Let a call draw what it will draw when it is run: a guard may look at it.

        Args:
            index: of the call.
        """
        self.keyed.add(index)
        return self._draws.random(Site("glue", self._num_glue))

    def next_glue(self, *, recomputed: bool) -> Site:
        """Return where the next draw of glue happens."""
        self._num_glue += 1
        return Site("glue", self._num_glue - 1, recomputed)

    def call_begins(self) -> None:
        """Whatever Python's generators gave up to now, they gave between blocks."""
        if self._looks_often:
            self.python_between_blocks |= self._python_drew()

    def run_ends(self) -> None:
        """Whatever Python's generators gave since the last block, they gave between blocks.

        Raises:
            PythonDrawnError: if they gave something, and it is not known where.
            UnseenDrawsError: if torch's gave something, and it is not known where.
        """
        with torch._C.DisableTorchFunction():
            self._torch_drew_unseen()
        if self._unseen and not self._every_call:
            raise UnseenDrawsError
        if not self._looks_often and self._python_drew():
            raise PythonDrawnError
        self.call_begins()

    def block_ends(self) -> bool:
        """Seed for what follows a block, and tell whether the block drew from Python."""
        if not self._looks_often:
            return False
        drew = self._python_drew()
        self._begin()
        return drew

    def _begin(self) -> None:
        if self._draws.seed_python(self._number):
            self._state = python_generators_state()
        self._number += 1

    def _torch_drew_unseen(self) -> None:
        self._unseen |= self._torch_drew()

    def _torch_drew(self) -> bool:
        state = _torch_state()
        drew = not torch.equal(state, self._torch_state)
        self._torch_state = state
        return drew

    def _python_drew(self) -> bool:
        state = python_generators_state()
        drew = bool(state != self._state)
        self._state = state
        return drew


def _torch_state() -> Tensor:
    """Return the state of torch's generator in words, which are compared faster than bytes."""
    return torch.default_generator.get_state().view(torch.int64)
