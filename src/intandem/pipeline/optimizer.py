"""An optimizer that every rank steps in its own thread of work.

The optimizer that a user holds has the groups with their learning rates, and no state; each rank of
this process has an optimizer of its own for its parameters, with the state. A step is put to
the ranks after the pass that came before it, with the groups as they are then: a scheduler may
change them while ranks are still at it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

from torch.optim import Optimizer

from intandem.argument_types import require_type
from intandem.errors import RunError
from intandem.runtime.watch import OPTIMIZER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import nn

    from intandem.pipeline.assembly import Assembly
    from intandem.pipeline.training_steps import TrainingSteps
    from intandem.runtime.ranks import Ranks

    Factory = Callable[[list[nn.Parameter]], Optimizer]


class PipelineOptimizer(Optimizer):
    """Steps the parameters of this process; made by ``Pipeline.optimizer``.

    Used like the optimizer that the factory makes. ``step`` and ``zero_grad`` return at once.

    Args:
        parts: of each rank of this process that has parameters, its optimizer.
        ranks: of this process.
        settle: waits for what ranks have been asked for.
        is_usable: tells whether the gradients of the last step may be used.

    Attributes:
        updates: by rank, start and end of its last step, on the clock of ``time.perf_counter``.
    """

    def __init__(
        self,
        parts: Mapping[int, Optimizer],
        ranks: Ranks,
        settle: Callable[[], None],
        is_usable: Callable[[], Callable[[], bool]],
    ) -> None:
        self._parts = dict(parts)
        self._ranks = ranks
        self._settle = settle
        self._is_usable = is_usable
        groups = [dict(group) for part in parts.values() for group in part.param_groups]
        defaults = next((part.defaults for part in parts.values()), {})
        self.updates: dict[int, tuple[float, float]] = {}
        super().__init__(groups, defaults)

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """Have every rank step its parameters; a step whose loss is NaN or infinite is left out.

        Raises:
            RunError: if there is a closure, which would have to run the model again.
        """
        if closure is not None:
            msg = "a pipeline's optimizer takes no closure; call pipe.step(batch) before it"
            raise RunError(msg)
        options, usable = self._options(), self._is_usable()

        def step(rank: int) -> None:
            if rank in self._parts and usable():
                part = self._parts[rank]
                start_s = time.perf_counter()
                _set(part, options[rank])
                part.step()
                self.updates[rank] = (start_s, time.perf_counter())

        self._ranks.ask(OPTIMIZER, step)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Have every rank drop its gradients, or set them to zero."""

        def zero(rank: int) -> None:
            if rank in self._parts:
                self._parts[rank].zero_grad(set_to_none)

        self._ranks.ask("zero_grad()", zero)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every rank's optimizer, once the ranks are done."""
        self._settle()
        return {str(rank): part.state_dict() for rank, part in self._parts.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what ``state_dict`` returned, with as many ranks and the same cuts.

        Raises:
            ValueError: if it is of other ranks.
        """
        if set(state_dict) != {str(rank) for rank in self._parts}:
            theirs, ours = ", ".join(state_dict), ", ".join(map(str, self._parts))
            msg = f"the state is of ranks {theirs}; this process has ranks {ours}"
            raise ValueError(msg)
        self._settle()
        for rank, part in self._parts.items():
            part.load_state_dict(state_dict[str(rank)])
        self.take_options()

    def parts(self) -> list[Optimizer]:
        """Return the optimizers of this process's ranks, with these groups' options, at rest."""
        self._settle()
        options = self._options()
        for rank, part in self._parts.items():
            _set(part, options[rank])
        return list(self._parts.values())

    def take_options(self) -> None:
        """Give the groups the options that the ranks' optimizers have been given."""
        loaded = [group for part in self._parts.values() for group in part.param_groups]
        for group, found in zip(self.param_groups, loaded, strict=True):
            group.update({key: value for key, value in found.items() if key != "params"})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse further groups: which rank has them was decided when the optimizer was made.

        Raises:
            RunError: if the optimizer is there already.
        """
        if len(self.param_groups) >= sum(len(p.param_groups) for p in self._parts.values()):
            msg = "make the optimizer anew with pipe.optimizer(...), with all of its groups"
            raise RunError(msg)
        super().add_param_group(param_group)

    def _options(self) -> dict[int, list[dict[str, Any]]]:
        """Return a copy of the options of every group, by rank."""
        groups = iter(self.param_groups)
        return {
            rank: [
                {key: value for key, value in next(groups).items() if key != "params"}
                for _ in part.param_groups
            ]
            for rank, part in self._parts.items()
        }


def optimizer_of(
    factory: Factory,
    named: Iterable[tuple[str, nn.Parameter]],
    assembly: Assembly,
    steps: TrainingSteps,
    is_usable: Callable[[], Callable[[], bool]],
) -> PipelineOptimizer:
    """Return the optimizer of a pipeline; see ``Pipeline.optimizer``.

    Args:
        factory: makes one of a list of parameters.
        named: parameters of this process.
        assembly: knows which rank holds what.
        steps: which then run ahead.
        is_usable: tells whether the gradients of the last step may be used.

    Raises:
        RunError: if there is one already.
        TypeError: if the factory returns no optimizer.
    """
    if steps.run_ahead:
        msg = "this pipeline has an optimizer already; give that one all parameter groups"
        raise RunError(msg)
    parts = _optimizers_of(factory, named, assembly)
    steps.run_ahead = True
    return PipelineOptimizer(parts, assembly.ranks, steps.settle, is_usable)


def _optimizers_of(
    factory: Factory, named: Iterable[tuple[str, nn.Parameter]], assembly: Assembly
) -> dict[int, Optimizer]:
    """Return an optimizer for every rank of this process that has parameters.

    Args:
        factory: makes one of a list of parameters.
        named: parameters of this process; one that several of its ranks hold is the first one's.
        assembly: knows which rank holds what.

    Raises:
        TypeError: if the factory returns no optimizer.
    """
    own: dict[int, list[nn.Parameter]] = {rank: [] for rank in assembly.ranks.own}
    for name, parameter in named:
        rank = next(rank for rank in assembly.holders_of[name] if rank in own)
        own[rank].append(parameter)
    found: dict[int, Optimizer] = {}
    for rank, parameters in own.items():
        if parameters:
            made: object = factory(parameters)
            require_type("what the factory returns", made, Optimizer, "a torch.optim.Optimizer")
            found[rank] = cast("Optimizer", made)
    return found


def _set(optimizer: Optimizer, options: Sequence[dict[str, Any]]) -> None:
    for group, values in zip(optimizer.param_groups, options, strict=True):
        group.update(values)
