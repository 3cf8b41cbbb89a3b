"""An optimizer's state by parameter names, taken from one optimizer and given to another.

Which parameters an optimizer has, in which order, on how many ranks, makes no difference: each
parameter's state and the options of its group are found by its name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from intandem.checkpoint.manifest import Group, OptimizerState
from intandem.checkpoint.trees import from_json, tensor_in_place, to_json
from intandem.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from torch import nn
    from torch.optim import Optimizer

    NamesOf = Callable[[Tensor], tuple[str, ...]]
    """Given a parameter, returns every name it has in the model, its own first; or raises."""

_NOT_OPTIONS = ("params", "param_names")


def names_of(model: nn.Module) -> NamesOf:
    """Return what knows the names of a model's parameters."""
    found: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), []).append(name)

    def look_up(parameter: Tensor) -> tuple[str, ...]:
        if id(parameter) not in found:
            msg = (
                f"the optimizer has a parameter of shape {tuple(parameter.shape)} that the model "
                "does not have; make it from the pipeline's or the model's parameters"
            )
            raise CheckpointError(msg)
        return tuple(found[id(parameter)])

    return look_up


class Taken(NamedTuple):
    """What ``take`` returns: the state as JSON, without files, and the tensors that it names."""

    state: OptimizerState
    tensors: dict[str, Tensor]


def take(optimizers: Sequence[Optimizer], names: NamesOf, wanted: Collection[str]) -> Taken:
    """Return the state of ``wanted`` parameters.

    Args:
        optimizers: of one kind, each with parameters of its own.
        names: of the parameters.
        wanted: those to return, by first name.

    Raises:
        CheckpointError: if the state is no tensors, numbers and text.
    """
    groups: list[Group] = []
    states: dict[str, dict[str, Any]] = {}
    tensors: dict[str, Tensor] = {}
    for optimizer in optimizers:
        for index, group in enumerate(optimizer.param_groups):
            where = f"group {index} of the optimizer"
            own = {names(p)[0]: p for p in group["params"]}
            kept = {name: p for name, p in own.items() if name in wanted}
            options = to_json(_options(group), where, tensor_in_place)
            groups.append(Group(index, options, tuple(kept)))
            for name, parameter in kept.items():
                if state := optimizer.state.get(parameter):
                    states[name] = _state_of(name, state, tensors)
    return Taken(OptimizerState(kind_of(optimizers), tuple(groups), states, {}), tensors)


def kind_of(optimizers: Sequence[Optimizer]) -> str:
    """Return the name of the class of optimizers."""
    return type(optimizers[0]).__name__ if optimizers else ""


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in _NOT_OPTIONS}


def _state_of(name: str, state: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return a parameter's state as JSON, adding its tensors to ``tensors``."""

    def put(where: str, tensor: Tensor) -> dict[str, str]:
        tensors[where] = tensor
        return {"$tensor": where}

    return {key: to_json(value, f"{name}/{key}", put) for key, value in state.items()}


class Plan(NamedTuple):
    """What one optimizer will be given: for each group its options and saved parameter names."""

    optimizer: Optimizer
    groups: list[tuple[dict[str, Any], list[str]]]

    def names(self) -> list[str]:
        """Return the saved names of its parameters."""
        return [name for _, names in self.groups for name in names]


def plan(
    optimizers: Sequence[Optimizer],
    names: NamesOf,
    saved: OptimizerState,
    tied: Mapping[str, str],
) -> list[Plan]:
    """Find the state of every parameter, changing nothing.

    Args:
        optimizers: those that will be given state.
        names: of their parameters.
        saved: in the checkpoint.
        tied: other names that parameters have there.

    Raises:
        CheckpointError: if the optimizer is another one than was saved: by class, or parameters.
    """
    if optimizers and saved.kind and (kind := kind_of(optimizers)) != saved.kind:
        msg = f"the optimizer is of class {kind}; the checkpoint's state is of {saved.kind}"
        raise CheckpointError(msg)
    group_of = {name: group for group in saved.groups for name in group.names}
    plans = []
    for optimizer in optimizers:
        found = Plan(optimizer, [])
        for index, group in enumerate(optimizer.param_groups):
            own = [_saved_name(names(p), group_of, tied) for p in group["params"]]
            found.groups.append((_options_of(index, group, own, group_of), own))
        plans.append(found)
    return plans


def _saved_name(
    names: tuple[str, ...], group_of: Mapping[str, Group], tied: Mapping[str, str]
) -> str:
    for name in (*names, *(tied[name] for name in names if name in tied)):
        if name in group_of:
            return name
    msg = f"the checkpoint's optimizer does not have {names[0]}; give it the same parameters"
    raise CheckpointError(msg)


def _options_of(
    index: int, group: Mapping[str, Any], names: Sequence[str], group_of: Mapping[str, Group]
) -> dict[str, Any]:
    """Return the options that all parameters of a group had."""
    options = _options(group)
    if not names:
        return options
    first = group_of[names[0]]
    for name in names:
        if group_of[name].options != first.options:
            msg = (
                f"group {index} of the optimizer has {names[0]} and {name}, which were in groups "
                f"of other options than each other's ({first.index}, {group_of[name].index}); "
                "make the same groups"
            )
            raise CheckpointError(msg)
    return {**options, **{key: from_json(value) for key, value in first.options.items()}}


def tensors_in(tree: Any) -> Iterator[str]:
    """Yield the keys of tensors that JSON from ``to_json`` names."""
    if isinstance(tree, dict):
        if isinstance(key := tree.get("$tensor"), str):
            yield key
        for item in tree.values():
            yield from tensors_in(item)
    elif isinstance(tree, list):
        for item in tree:
            yield from tensors_in(item)


def give(planned: Plan, saved: OptimizerState, tensors: Mapping[str, Tensor]) -> None:
    """Load an optimizer's state, through its own ``load_state_dict``.

    Tensors keep the dtypes they were saved with, where torch's own loading would round them to
    their parameters'.
    """
    optimizer, number = planned.optimizer, 0
    groups: list[dict[str, Any]] = []
    states: dict[int, dict[str, Any]] = {}
    for options, names in planned.groups:
        numbers = range(number, number := number + len(names))
        groups.append({**options, "params": list(numbers)})
        for one, name in zip(numbers, names, strict=True):
            if name in saved.state:
                tree = saved.state[name]
                states[one] = {key: from_json(v, tensors.__getitem__) for key, v in tree.items()}
    optimizer.load_state_dict({"state": states, "param_groups": groups})
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for one, loaded in states.items():
        now = optimizer.state[parameters[one]]
        for key, value in loaded.items():
            if isinstance(value, Tensor) and now[key].dtype != value.dtype:
                now[key] = value.to(now[key].device)
