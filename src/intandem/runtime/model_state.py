"""What a recording is for besides a batch: modes, what is trained, and plain Python attributes."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from intandem.recorder.modules import named_modules, named_parameters
from intandem.recorder.python_state import plain_state
from intandem.recorder.recording import autocast_state

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable

    from torch import nn

    from intandem.recorder.code_state import CodeState

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class ModelState:
    """The state of a model and of this thread's modes.

    Attributes:
        training: flag of every module, in order.
        needs_gradients: flag of every parameter, in order.
        attributes: plain attributes of modules outside blocks, and dtypes and shapes of their
            buffers.
        grad_enabled: whether autograd records.
        autocast: mixed-precision modes.
        code: what glue runs, and globals that it reads.
    """

    training: tuple[bool, ...]
    needs_gradients: tuple[bool, ...]
    attributes: tuple[tuple[str, Hashable], ...]
    grad_enabled: bool
    autocast: tuple[Hashable, ...]
    code: tuple[tuple[str, Hashable], ...]

    def code_in_words(self) -> dict[str, str]:
        """Return what glue runs and reads in words, which may differ between processes."""
        return {name: str(hash(value)) for name, value in self.code}

    def facts(self, model: nn.Module) -> dict[str, str]:
        """Return all but the code in words, which are the same in every process of a run."""
        modules = [name or "the model" for name, _ in model.named_modules()]
        parameters = [name for name, _ in model.named_parameters()]
        trained = zip(modules, self.training, strict=False)
        needed = zip(parameters, self.needs_gradients, strict=False)
        return {
            **{f"training of {name}": str(flag) for name, flag in trained},
            **{f"requires_grad of {name}": str(flag) for name, flag in needed},
            **{f"attribute {name}": _in_words(value) for name, value in self.attributes},
            "gradients": str(self.grad_enabled),
            "mixed precision": ", ".join(map(str, self.autocast)) or "off",
        }


def state_of(model: nn.Module, blocks: Collection[nn.Module], code: CodeState) -> ModelState:
    """Return the state of ``model`` now, in the modes of this thread."""
    return ModelState(
        training=tuple(module.training for _, module in named_modules(model)),
        needs_gradients=tuple(p.requires_grad for _, p in named_parameters(model)),
        attributes=tuple(
            (name, value)
            for name, value in plain_state(model, blocks).items()
            if name.rpartition(".")[2] != "training"
        ),
        grad_enabled=torch.is_grad_enabled(),
        autocast=autocast_state(),
        code=tuple(code.now(blocks).items()),
    )


def digest_of(facts: dict[str, str]) -> str:
    """Return a short text that differs where ``facts`` differ."""
    return hashlib.blake2b(repr(sorted(facts.items())).encode(), digest_size=8).hexdigest()


def differences(ours: dict[str, str], theirs: dict[str, str]) -> list[str]:
    """Return what differs, in words: ``training of layers.1 is False, not True``."""
    names = {**ours, **theirs}
    return [
        f"{name} is {ours.get(name, 'not there')}, not {theirs.get(name, 'there')}"
        for name in names
        if ours.get(name) != theirs.get(name)
    ]


def _in_words(value: Any) -> str:
    """Return a plain attribute in words, without what differs between processes."""
    if not isinstance(value, tuple):
        return "an object"
    kind, content = value
    if kind == "tensor":
        return "a tensor"
    if isinstance(content, torch.device):
        return content.type
    if isinstance(content, tuple):
        items = ", ".join(f"{key}: {_in_words(item)}" for key, item in content)
        return _ADDRESS.sub("", f"{kind}({items})")
    return _ADDRESS.sub("", repr(content))
