"""What users' own tests need: the plain model with the draws that a pipeline gives it.

Written apart from the executor, with the process's default generator and hooks, so that the two
can be held against each other.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode

from intandem.recorder import Site
from intandem.recorder.blocks import find_blocks
from intandem.recorder.functions import is_random
from intandem.runtime.randomness import draw_key

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def keyed_randomness(
    model: nn.Module, *, seed: int = 0, step: int = 0, microbatch: int = 0
) -> Iterator[None]:
    """Give one plain forward of ``model`` the random draws it gets in a pipeline.

    Use it around one call of the model and its loss; the process's random state is put back.

    Args:
        model: the plain module.
        seed: of the run (``Options.seed``).
        step: number of the training step, counted from 0.
        microbatch: index of the micro-batch in its batch.
    """
    seeder = _Seeder(model, (seed, step, microbatch))
    handles = [
        hooks.register_module_forward_pre_hook(seeder.enter),
        hooks.register_module_forward_hook(seeder.leave, always_call=True),
    ]
    devices = range(torch.cuda.device_count())
    try:
        with torch.random.fork_rng(devices=devices), seeder:
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Seeder(TorchFunctionMode):
    """Seeds before every block, and before every random function outside blocks."""

    def __init__(self, model: nn.Module, key: tuple[int, int, int]) -> None:
        super().__init__()
        self._model = model
        self._key = key
        self._blocks = find_blocks(model)
        self._calls: Counter[str] = Counter()
        self._inside: list[nn.Module] = []
        self._in_model = False

    def enter(self, module: nn.Module, args: Any) -> None:
        """Seed when an outermost block begins."""
        del args
        if module is self._model:
            self._in_model = True
        if module in self._blocks:
            if not self._inside:
                self._seed(self._blocks[module])
            self._inside.append(module)

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """Note that a block has ended, or the model, after which the loss is computed."""
        del args, output
        if self._inside and self._inside[-1] is module:
            self._inside.pop()
        if module is self._model and self._in_model:
            self._in_model = False
            self._seed("loss")

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if self._in_model and not self._inside and is_random(func, args, kwargs):
            self._seed("glue")
        return func(*args, **kwargs)

    def _seed(self, name: str) -> None:
        torch.manual_seed(draw_key(*self._key, Site(name, self._calls[name])))
        self._calls[name] += 1
