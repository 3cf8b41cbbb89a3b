"""The whole model's state, gathered from the ranks that hold it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from intandem.argument_types import require_type
from intandem.runtime.transport.protocol import POLL_S

if TYPE_CHECKING:
    from torch import nn

    from intandem.pipeline.assembly import Assembly
    from intandem.pipeline.exchange import Exchange
    from intandem.pipeline.home import Home


def gather_state(model: nn.Module, assembly: Assembly, exchange: Exchange) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers, by the user's names, on every rank.

    Raises:
        RunError: if rank 0 makes another call.
        PeerFailureError: if another rank fails meanwhile.
    """
    own = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if assembly.home.membership is None:
        return {name: tensor.clone() for name, tensor in own.items()}
    first_name = {id(p): n for n, p in reversed(list(model.named_parameters()))}
    owner_of = {
        name: assembly.holders_of[first_name[id(parameter)]][0]
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    exchange.gather("state_dict()", b"")
    device = assembly.home.device
    gathered: dict[str, Tensor] = {}
    for name, tensor in own.items():
        owner = owner_of.get(name, assembly.updater_of.get(name, 0))
        if assembly.home.membership.rank == owner:
            gathered[name] = tensor.to(device, copy=True).contiguous()
        else:
            gathered[name] = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
        _broadcast(gathered[name], owner, assembly.home)
    return gathered


def _broadcast(tensor: Tensor, owner: int, home: Home) -> None:
    """Broadcast without outliving the run: the wait cannot be interrupted, so a thread waits."""
    work = dist.broadcast(tensor, src=owner, async_op=True)
    if work is None:
        return
    thread = threading.Thread(target=work.wait, name="intandem state", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_S)
        home.check()


def load_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy from ``state`` what is not on ``meta`` here.

    Raises:
        TypeError: if ``state`` is no mapping.
        ValueError: if names or shapes are not the model's.
    """
    require_type("state", state, Mapping, "a dictionary of tensors, by name")
    own = model.state_dict()
    missing, foreign = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if missing or foreign or shapes:
        found = [f"missing {', '.join(missing)}"] if missing else []
        found += [f"unknown {', '.join(foreign)}"] if foreign else []
        msg = f"the state is not this model's: {'; '.join([*found, *shapes])}"
        raise ValueError(msg)
    with torch.no_grad():
        for name, tensor in own.items():
            if not tensor.is_meta:
                tensor.copy_(state[name])
