"""What users' own tests need: the plain model with the draws that a pipeline gives it.

Written apart from the executor, with the process's default generator and hooks, so that the two
can be held against each other.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from intandem.recorder import Site
from intandem.recorder.blocks import find_blocks
from intandem.recorder.functions import is_random
from intandem.recorder.interception import intercepted
from intandem.recorder.python_state import python_generators_kept, seed_python_generators
from intandem.runtime.randomness import draw_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import nn
    from torch.autograd import Function


@contextmanager
def keyed_randomness(
    model: nn.Module,
    *,
    seed: int = 0,
    step: int = 0,
    microbatch: int = 0,
    blocks: Sequence[str | type[nn.Module]] = (),
) -> Iterator[None]:
    """Give one plain forward of ``model`` the random draws it gets in a pipeline.

    Use it around one call of the model and its loss; the process's random state is put back.

    Args:
        model: the plain module.
        seed: of the run (``Options.seed``).
        step: number of the training step, counted from 0.
        microbatch: index of the micro-batch in its batch.
        blocks: modules kept whole besides those found, as given to the ``Pipeline``.
    """
    seeder = _Seeder(model, (seed, step, microbatch), blocks)
    devices = range(torch.cuda.device_count())
    with (
        torch.random.fork_rng(devices=devices),
        python_generators_kept(),
        intercepted(seeder.blocks, seeder),
    ):
        yield


class _Seeder:
    """Seeds before every block, and before every random function outside blocks."""

    def __init__(
        self,
        model: nn.Module,
        key: tuple[int, int, int],
        blocks: Sequence[str | type[nn.Module]],
    ) -> None:
        self.blocks = find_blocks(model, blocks)
        self._model = model
        self._key = key
        self._calls: Counter[str] = Counter()
        self._in_block = False
        self._in_model = False

    def on_module(
        self, module: nn.Module, proceed: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        """Seed when an outermost block begins, and when the model has ended: for the loss."""
        if self._in_block:
            return proceed(*args, **kwargs)
        if module in self.blocks:
            seed_python_generators(self._seed(self.blocks[module]))
            self._in_block = True
            try:
                return proceed(*args, **kwargs)
            finally:
                self._in_block = False
                self._seed_python()
        outermost = module is self._model and not self._in_model
        self._in_model |= outermost
        if outermost:
            self._seed_python()
        try:
            return proceed(*args, **kwargs)
        finally:
            if outermost:
                self._in_model = False
                self._seed("loss")

    def on_autograd_function(
        self,
        function: type[Function],
        proceed: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Any,
    ) -> Any:
        """Leave functions with their own autograd alone."""
        del function
        return proceed(*args, **kwargs)

    def on_torch_function(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Seed when glue draws."""
        if self._in_model and not self._in_block and is_random(function, args, kwargs):
            self._seed("glue")
        return function(*args, **kwargs)

    def _seed(self, name: str) -> int:
        key = self._next_key(name)
        torch.manual_seed(key)
        return key

    def _seed_python(self) -> None:
        """What follows a block does not depend on what the block drew."""
        seed_python_generators(self._next_key("python"))

    def _next_key(self, name: str) -> int:
        self._calls[name] += 1
        return draw_key(*self._key, Site(name, self._calls[name] - 1))
