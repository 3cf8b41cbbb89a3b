"""The registered tensors of a model, and what they are called."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


class Registered(NamedTuple):
    """One tensor of a model.

    Attributes:
        tensor: the parameter or buffer.
        names: every name it is registered under; several if it is tied. The first is its name.
        persistent: whether it is part of the model's state.
    """

    tensor: Tensor
    names: tuple[str, ...]
    persistent: bool

    @property
    def is_parameter(self) -> bool:
        """Whether it is trained, or frozen, and not a buffer."""
        return isinstance(self.tensor, nn.Parameter)


def registered(model: nn.Module) -> dict[str, Registered]:
    """Return every parameter and buffer of ``model`` by its first name, in order."""
    names: dict[int, list[str]] = {}
    found: dict[str, Registered] = {}
    persistent: set[int] = set()
    for prefix, module in model.named_modules(remove_duplicate=False):
        dot = f"{prefix}." if prefix else ""
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                names.setdefault(id(tensor), []).append(dot + key)
                found.setdefault(names[id(tensor)][0], Registered(tensor, (), persistent=False))
                if key not in module._non_persistent_buffers_set:
                    persistent.add(id(tensor))
    return {
        name: Registered(one.tensor, tuple(names[id(one.tensor)]), id(one.tensor) in persistent)
        for name, one in found.items()
    }
