"""This process's place among the processes of a run, by way of torch.distributed.

The one place of the runtime that reads the environment, and only torch.distributed's part of it.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import torch.distributed as dist

from intandem.errors import RunError

if TYPE_CHECKING:
    import torch

_LOOPBACK_INTERFACE = "lo0" if sys.platform == "darwin" else "lo"


@dataclass(frozen=True, slots=True)
class Membership:
    """One process's place in a pipeline of processes.

    Attributes:
        rank: position in the pipeline.
        num_ranks: processes of the pipeline.
        store: where its processes find each other and leave facts. Every joining has keys of its
            own in it, so that several pipelines of one process do not meet.
        backend: ``gloo`` or ``nccl``.
    """

    rank: int
    num_ranks: int
    store: dist.Store
    backend: str


def join_process_group(
    device: torch.device, *, store: dist.Store | None = None, timeout_s: float = 300.0
) -> Membership:
    """Join the other processes of this run, every one of them a rank of one pipeline.

    Initialises torch.distributed from RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT unless that
    was done already; it lasts as long as the process, for all of its pipelines. Gloo keeps to the
    loopback interface if MASTER_ADDR does.

    Args:
        device: where this process computes; ``cuda`` means NCCL, anything else Gloo.
        store: to be used instead of the one at MASTER_ADDR.
        timeout_s: how long the processes may take to find each other, in seconds.

    Raises:
        RunError: if they do not.
    """
    backend = "nccl" if device.type == "cuda" else "gloo"
    if not dist.is_initialized():
        _initialise(backend, store, timedelta(seconds=timeout_s))
    rank = dist.get_rank()
    shared = dist.PrefixStore(f"intandem/{attempt()}", store or default_store())
    joining = shared.add(f"joined/{rank}", 1)
    own = dist.PrefixStore(str(joining), shared)
    return Membership(rank, dist.get_world_size(), own, backend)


def _initialise(backend: str, store: dist.Store | None, timeout: timedelta) -> None:
    if backend == "gloo" and _is_loopback(os.environ.get("MASTER_ADDR", "")):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _LOOPBACK_INTERFACE)
    try:
        if store is None:
            store, rank, num_ranks = next(dist.rendezvous("env://", timeout=timeout))
        else:
            rank, num_ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        # [Note: one prefix per attempt] A store outlives a restart of its processes, and the
        # addresses that an earlier attempt left in it lead nowhere.
        prefixed = dist.PrefixStore(f"attempt/{attempt()}", store)
        dist.init_process_group(
            backend, store=prefixed, rank=rank, world_size=num_ranks, timeout=timeout
        )
    except (RuntimeError, ValueError, KeyError) as error:
        msg = f"torch.distributed cannot be initialised: {type(error).__name__}: {error}"
        raise RunError(msg) from error


def default_store() -> dist.Store:
    """Return the store of the default process group.

    Raises:
        RunError: if torch.distributed is not initialised.
    """
    world = dist.group.WORLD
    if world is None:
        msg = "torch.distributed has no default group"
        raise RunError(msg)
    return world.get_group_store()


def attempt() -> int:
    """Return how often the launcher has restarted this run."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def launched_num_ranks() -> int | None:
    """Return how many processes a launcher has started (WORLD_SIZE), or None without one."""
    return int(os.environ["WORLD_SIZE"]) if "WORLD_SIZE" in os.environ else None


def local_rank() -> int:
    """Return this process's number on its machine (LOCAL_RANK)."""
    return int(os.environ.get("LOCAL_RANK", "0"))
