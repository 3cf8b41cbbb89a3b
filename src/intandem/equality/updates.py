"""Parameters after the optimizer: the same one on the plain model and on the one in tandem."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from intandem.equality.comparison import gradient_floor, norm

if TYPE_CHECKING:
    from collections.abc import Mapping

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer | Sequence[Optimizer]]
"""Makes the optimizer (or several) of a model's parameters, given in the model's order."""


def plain_sgd(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Return the optimizer that is used when none is given; errors stay as large as they are."""
    return SGD(parameters, lr=0.1)


def sgd_in_place_of_strangers(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Return what is used when the user's optimizers have no parameter of the model."""
    return plain_sgd(parameters)


def described(factory: OptimizerFactory | None, model: nn.Module) -> str:
    """Name what ``factory`` makes for ``model``: ``AdamW(lr=0.001)``."""
    made = _made(factory or plain_sgd, model)
    names = ", ".join(_name_of(optimizer) for optimizer in made)
    if factory is None:
        return f"{names}, as no optimizer is given"
    if factory is sgd_in_place_of_strangers:
        return f"{names}, as the optimizer it made holds none of the model's parameters"
    return names


def updated(model: nn.Module, factory: OptimizerFactory | None) -> dict[str, Tensor]:
    """Let the optimizer take one step with the gradients at hand; return copies of parameters.

    ``model`` is changed.
    """
    for optimizer in _made(factory or plain_sgd, model):
        optimizer.step()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def slack_of(
    model: nn.Module,
    gradients: Mapping[str, Tensor | None],
    after: Mapping[str, Tensor],
    factory: OptimizerFactory | None,
    tolerance: float,
) -> dict[str, float]:
    """Return how far each parameter goes when its gradient changes by the tolerance.

    An optimizer that divides by a gradient's size (Adam) makes of rounding in a gradient that is
    zero a change as large as any; where numbers are that sensitive, so is the comparison.

    Args:
        model: as it was before the step; changed.
        gradients: of the step.
        after: parameters after the optimizer, with these gradients.
        factory: of the optimizer.
        tolerance: of the gradients' errors.
    """
    floor = gradient_floor(gradients)
    for name, parameter in model.named_parameters():
        if (gradient := gradients.get(name)) is not None:
            parameter.grad = _disturbed(gradient, floor, tolerance)
    moved = updated(model, factory)
    return {name: norm(moved[name].double() - after[name].double()) for name in after}


def _disturbed(gradient: Tensor, floor: float, tolerance: float) -> Tensor:
    """Return a gradient changed, in alternating directions, by the tolerance of its error.

    Of a sparse one, only the rows that it has.
    """
    if gradient.is_sparse:
        rows = gradient.coalesce()
        values = _disturbed(rows.values(), floor, tolerance)
        return torch.sparse_coo_tensor(
            rows.indices(), values, rows.shape, is_coalesced=True, check_invariants=False
        )
    count = max(gradient.numel(), 1)
    signs = torch.ones(count, dtype=gradient.dtype, device=gradient.device)
    signs[::2] = -1
    size = tolerance * max(norm(gradient), floor) / count**0.5
    change: Tensor = (signs[: gradient.numel()] * size).reshape(gradient.shape)
    return gradient + change


def rebuilt(
    optimizers: Sequence[Optimizer], parameters: Sequence[nn.Parameter]
) -> OptimizerFactory | None:
    """Return what makes ``optimizers`` again, for a copy of the model they were made for.

    Args:
        optimizers: of the user; those without a parameter of the model are left out.
        parameters: of the model, in its order.
    """
    place = {id(parameter): index for index, parameter in enumerate(parameters)}
    own = [o for o in optimizers if any(id(p) in place for p in _parameters_of(o))]
    if not own:
        return sgd_in_place_of_strangers if optimizers else None

    def make(given: Iterable[nn.Parameter]) -> Sequence[Optimizer]:
        copies = list(given)
        return [_copied(o, lambda p: copies[place[id(p)]] if id(p) in place else p) for o in own]

    return make


_OWN = {"state", "param_groups", "step"}
"""What a copy has of its own; schedulers of the learning rate bind ``step`` to the original."""


def _copied(optimizer: Optimizer, copy_of: Callable[[Any], Any]) -> Optimizer:
    """Return an optimizer of the same class, groups and state for other parameters."""
    made = type(optimizer).__new__(type(optimizer))
    state: dict[Any, Any] = defaultdict(dict)
    for key, value in optimizer.state.items():
        state[copy_of(key)] = copy.deepcopy(value)
    groups = [
        {**group, "params": [copy_of(p) for p in group["params"]]}
        for group in optimizer.param_groups
    ]
    attributes = {
        key: value
        for key, value in vars(optimizer).items()
        if key not in _OWN and not key.startswith("_optimizer_")
    }
    made.__setstate__({**attributes, "state": state, "param_groups": groups})
    return made


def _made(factory: OptimizerFactory, model: nn.Module) -> list[Optimizer]:
    made = factory(list(model.parameters()))
    return [made] if isinstance(made, Optimizer) else list(made)


def _parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _name_of(optimizer: Optimizer) -> str:
    rate = optimizer.param_groups[0].get("lr")
    rate = float(rate) if isinstance(rate, Tensor) else rate
    return (
        f"{type(optimizer).__name__}(lr={rate:g})" if rate is not None else type(optimizer).__name__
    )
