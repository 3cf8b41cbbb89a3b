"""What users' own tests need: the plain model with the draws that a pipeline gives it.

Written apart from the executor, with the process's default generator and hooks, so that the two
can be held against each other.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

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
) -> Iterator[Draws]:
    """Give one plain forward of ``model`` the random draws it gets in a pipeline.

    Use it around one call of the model and its loss; the process's random state is put back. Where
    ``forward`` calls blocks under ``torch.utils.checkpoint``, use ``keyed_backward`` with what it
    yields: autograd calls those blocks again.

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
        seeder.begin()
        yield seeder.draws


@dataclass(frozen=True, slots=True)
class Draws:
    """What one forward was seeded with: a key, by site and the generator's state before.

    Attributes:
        keys: found by what a site sees when it is run again with the generator's state put back.
        blocks: names of blocks.
    """

    keys: dict[tuple[str, bytes], int]
    blocks: dict[nn.Module, str]


def keyed_backward(loss: Tensor, found: Sequence[Draws]) -> None:
    """Do what ``loss.backward()`` does, giving what autograd runs again the draws it had.

    Args:
        loss: scalar.
        found: of every forward that the backward goes through.
    """
    again = _Again(found)
    devices = range(torch.cuda.device_count())
    with (
        torch.random.fork_rng(devices=devices),
        python_generators_kept(),
        intercepted(again.blocks, again),
    ):
        # loss.backward() is a torch function itself, during which torch listens to nobody
        torch.autograd.Variable._execution_engine.run_backward(
            (loss,),
            (torch.ones_like(loss),),
            keep_graph=False,
            create_graph=False,
            inputs=(),
            allow_unreachable=True,
            accumulate_grad=True,
        )


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
        self.draws = Draws({}, self.blocks)

    def begin(self) -> None:
        """Start from a state that no other forward starts from."""
        torch.manual_seed(draw_key(*self._key, Site("begin", 0)))

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
        """Seed before one, as glue; it is kept whole, like a block, whatever it calls."""
        del function
        if self._in_block or not self._in_model:
            return proceed(*args, **kwargs)
        self._seed("glue")
        seeded = _state()
        self._in_block = True
        try:
            return proceed(*args, **kwargs)
        finally:
            self._in_block = False
            if _state() == seeded:  # it draws nothing, so it is not counted
                self._calls["glue"] -= 1

    def on_torch_function(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Seed when glue draws."""
        if self._in_model and not self._in_block and is_random(function, args, kwargs):
            self._seed("glue")
        return function(*args, **kwargs)

    def _seed(self, name: str) -> int:
        key = self.draws.keys[name, _state()] = self._next_key(name)
        torch.manual_seed(key)
        return key

    def _seed_python(self) -> None:
        """What follows a block does not depend on what the block drew."""
        seed_python_generators(self._next_key("python"))

    def _next_key(self, name: str) -> int:
        self._calls[name] += 1
        return draw_key(*self._key, Site(name, self._calls[name] - 1))


class _Again:
    """Seeds what is run again as it was seeded before; leaves the rest alone."""

    def __init__(self, found: Sequence[Draws]) -> None:
        self.blocks = found[0].blocks
        self._keys = {site: key for draws in found for site, key in draws.keys.items()}

    def on_module(
        self, module: nn.Module, proceed: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        """Seed a block; what is inside one finds no key of its own."""
        if module in self.blocks:
            self._seed(self.blocks[module])
        return proceed(*args, **kwargs)

    def on_autograd_function(
        self,
        function: type[Function],
        proceed: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Any,
    ) -> Any:
        """Leave it alone."""
        del function
        return proceed(*args, **kwargs)

    def on_torch_function(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Seed glue that draws."""
        if is_random(function, args, kwargs):
            self._seed("glue")
        return function(*args, **kwargs)

    def _seed(self, name: str) -> None:
        if (key := self._keys.get((name, _state()))) is not None:
            torch.manual_seed(key)
            if name != "glue":
                seed_python_generators(key)


def _state() -> bytes:
    """Return the state of the default generator."""
    state = torch.get_rng_state()
    with torch._C.DisableTorchFunction():
        return ctypes.string_at(state.data_ptr(), state.numel())
