"""Finds the modules, parameters and buffers that recorded calls use.

[Note: one leaf per use] A parameter that several calls use (tied weights, a module called twice)
gets a leaf of its own for each call after the first: the same memory, a gradient of its own. So no
two threads add to one ``.grad``, and the parts are added up in graph order wherever the model is
cut. Where a stage is held for several replicas, every use has a leaf for each replica: what the
replicas add up to is one more sum of parts. In a process that runs one rank, the first of that
rank's uses is the user's own parameter, so that most have no leaves besides. ``TiedGradients``
adds up.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from intandem.errors import RunError
from intandem.recorder.modules import named_parameters
from intandem.runtime.clones import Clone

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from intandem.recorder import Call, Graph

Use = tuple[str, int, int]
"""One use of a parameter: the call's anchor, its number, and the replica that makes the call."""


def use_of(call: Call, replica: int) -> Use:
    """Return the use that ``call`` makes of its parameters for one replica of the pipeline."""
    return call.anchor, call.call, replica


def uses_of(graph: Graph, num_replicas: int = 1) -> dict[str, tuple[Use, ...]]:
    """Return for each parameter the calls that use it: by replica, in graph order."""
    found: dict[str, list[Use]] = defaultdict(list)
    for replica in range(num_replicas):
        for call in graph.calls:
            for name in call.parameters:
                found[name].append(use_of(call, replica))
    return {name: tuple(uses) for name, uses in found.items()}


class Weights:
    """The user's model, with a leaf of its own for every use of a shared parameter.

    Args:
        model: the user's module.
        graph: its first recording, which says what is shared.
        num_replicas: how often every stage is held.
        own_uses: those that this process makes; None where it makes all of them.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        num_replicas: int = 1,
        own_uses: Collection[Use] | None = None,
    ) -> None:
        self._model = model
        self.num_replicas = num_replicas
        self._copies_blocks = num_replicas > 1 and own_uses is None
        all_uses = uses_of(graph, num_replicas)
        self._shared = {name: uses for name, uses in all_uses.items() if len(uses) > 1}
        own = {
            name: [use for use in uses if own_uses is None or use in own_uses]
            for name, uses in self._shared.items()
        }
        self._first_own = {name: uses[0] for name, uses in own.items() if uses}
        self._aliases: dict[tuple[str, Use], nn.Parameter] = {}
        self._clones: dict[Use, Clone] = {}
        self._blocks: dict[str, nn.Module] = {}
        self._names = self._parameter_names()

    def leaf(self, name: str, use: Use) -> nn.Parameter | None:
        """Return the leaf that one use of ``name`` accumulates into; None if it was never made."""
        if self._first_own.get(name) == use:
            return self.parameter(name)
        return self._aliases.get((name, use))

    def block(self, call: Call, replica: int = 0) -> Callable[[], Callable[..., Any]]:
        """Return what finds the module that a block's call runs for one replica."""
        module = self._blocks[call.name] = self._model.get_submodule(call.name)
        use = use_of(call, replica)
        others = [name for name in call.parameters if self._is_later_use(name, use)]
        if others or (replica and self._copies_blocks):
            if use not in self._clones:
                leaves = {id(self.parameter(n)): self._alias(n, use) for n in others}
                self._clones[use] = Clone(module, leaves)
            module = self._clones[use].module
        return lambda: module

    def tensor(self, name: str, call: Call | None, replica: int = 0) -> Callable[[], Tensor]:
        """Return what finds the parameter or buffer called ``name`` as ``call`` uses it."""
        use = use_of(call, replica) if call is not None else None
        if use is not None and self._is_later_use(name, use):
            alias = self._alias(name, use)
            return lambda: alias
        path, _, attribute = name.rpartition(".")
        owner = self._model.get_submodule(path)
        return lambda: getattr(owner, attribute)

    def parameter(self, name: str) -> nn.Parameter:
        """Return the user's parameter called ``name``."""
        return self._model.get_parameter(name)

    def name_of(self, leaf: Tensor) -> str | None:
        """Return the user's name of a parameter, or of the one that a use's leaf stands for."""
        for (name, _), alias in self._aliases.items():
            if alias is leaf:
                return name
        return next((n for n, p in self._model.named_parameters() if p is leaf), None)

    def copy_buffers(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return copies of the named buffers."""
        return {name: self._model.get_buffer(name).detach().clone() for name in names}

    @contextmanager
    def buffers_as(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Put other tensors in place of the named buffers while the context is open.

        The buffers themselves are not written to, so that autograd, which may have saved them,
        sees no change.
        """
        before = [
            (places, places[key], key, values[name])
            for name in values
            for places, key in self._places_of(self._model.get_buffer(name))
        ]
        for places, _, key, value in before:
            places[key] = value
        try:
            yield
        finally:
            for places, buffer, key, _ in before:
                places[key] = buffer

    @contextmanager
    def gradients_set_aside(self) -> Iterator[None]:
        """Start from no gradients while the context is open, and put them back afterwards."""
        leaves = [*self._model.parameters(), *self._aliases.values()]
        before = [leaf.grad for leaf in leaves]
        for leaf in leaves:
            leaf.grad = None
        try:
            yield
        finally:
            for leaf in self._aliases.values():
                leaf.grad = None
            for leaf, gradient in zip(leaves, before, strict=True):
                leaf.grad = gradient

    def _places_of(self, buffer: Tensor) -> list[tuple[dict[str, Tensor | None], str]]:
        """Return the modules' tables in which ``buffer`` is registered, and its names there."""
        return [
            (module._buffers, key)
            for module in self._model.modules()
            for key, found in module._buffers.items()
            if found is buffer
        ]

    def refresh(self) -> None:
        """Let aliases and clones follow what the user did to their originals between steps.

        Raises:
            RunError: if the user did what they cannot follow.
        """
        self.refuse_other_modules()
        self._refuse_hooks_on_parts()
        for (name, _), alias in self._aliases.items():
            original = self.parameter(name)
            if alias.data_ptr() != original.data_ptr() or alias.dtype != original.dtype:
                alias.data = original.detach()
            alias.requires_grad_(original.requires_grad)
        leaves = {id(alias) for alias in self._aliases.values()}
        for clone in self._clones.values():
            clone.follow(leaves)

    def _parameter_names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in named_parameters(self._model))

    def refuse_other_modules(self) -> None:
        """Raise if the model is made of other modules or parameters than it was.

        Raises:
            RunError: saying what to do first.
        """
        replaced = [n for n, m in self._blocks.items() if self._model.get_submodule(n) is not m]
        if replaced or self._names != self._parameter_names():
            what = f"module {replaced[0]} was" if replaced else "parameters were"
            msg = (
                f"{what} replaced, added or removed after the pipeline was built; change the model "
                "first (adapters, heads), then build the pipeline"
            )
            raise RunError(msg)

    def _refuse_hooks_on_parts(self) -> None:
        for name in self._shared:
            parameter = self.parameter(name)
            after = getattr(parameter, "_post_accumulate_grad_hooks", None)
            if parameter._backward_hooks or after:
                msg = (
                    f"{name} has a gradient hook and is used in {len(self._shared[name])} places, "
                    "whose gradients are added up after the step, so the hook would see one part "
                    "only; remove it, and change .grad after step() instead"
                )
                raise RunError(msg)

    def _is_later_use(self, name: str, use: Use) -> bool:
        return name in self._shared and self._first_own.get(name) != use

    def _alias(self, name: str, use: Use) -> nn.Parameter:
        if (name, use) not in self._aliases:
            original = self.parameter(name)
            leaf = nn.Parameter(original.detach(), requires_grad=original.requires_grad)
            self._aliases[name, use] = leaf
        return self._aliases[name, use]
