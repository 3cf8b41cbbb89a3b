"""Where this process's ranks run, and how they reach the others."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from intandem.errors import CheckpointError
from intandem.runtime.allocator import keep_freed_memory
from intandem.runtime.distributed_watch import DistributedWatch
from intandem.runtime.ranks import LocalRanks, ProcessRank, default_threads_per_rank
from intandem.runtime.suspicion import Limits
from intandem.runtime.transport.distributed import connect
from intandem.runtime.transport.edges import Edge
from intandem.runtime.transport.process_group import (
    attempt,
    default_store,
    join_process_group,
    local_rank,
)
from intandem.runtime.watch import BETWEEN_STEPS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import nn

    from intandem.pipeline.options import Options
    from intandem.runtime.ranks import Ranks
    from intandem.runtime.tied import TiedGradients
    from intandem.runtime.transport.process_group import Membership
    from intandem.runtime.weights import Weights


@dataclass(frozen=True, slots=True)
class Home:
    """This process's part of the pipeline's ranks.

    Attributes:
        own_ranks: ranks that run here.
        device: where they compute; local ranks share one.
        threads_per_rank: torch's own threads for each.
        membership: place in the process group; None where all ranks are threads.
        watch: health of the process group; None without one.
    """

    own_ranks: tuple[int, ...]
    device: torch.device
    threads_per_rank: int
    membership: Membership | None = None
    watch: DistributedWatch | None = None

    def agree(self, key: str, value: bytes | None) -> bytes:
        """Return rank 0's ``value``, on every rank; the others' is not looked at."""
        if self.membership is None:
            return value or b""
        if self.membership.rank == 0:
            self.membership.store.set(key, value or b"")  # type: ignore[arg-type]  # takes bytes
        return bytes(self.membership.store.get(key))

    def fail(self, error: Exception) -> None:
        """Tell the other processes that this one cannot go on."""
        if self.watch is not None:
            self.watch.fail(error)

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Say what the caller's thread does between passes, while open.

        After another error than of a checkpoint, it is still at it: that is where it failed.
        """
        if self.watch is None:
            yield
            return
        self.watch.begin(what)
        try:
            yield
        except CheckpointError:  # may be caught; every rank has been told
            self.watch.begin(BETWEEN_STEPS)
            raise
        self.watch.begin(BETWEEN_STEPS)

    def check(self) -> None:
        """Return while the run is healthy.

        Raises:
            PeerFailureError: once another process has failed.
        """
        if self.watch is not None:
            self.watch.check()

    @property
    def num_ranks(self) -> int:
        """Ranks of the pipeline."""
        return len(self.own_ranks) if self.membership is None else self.membership.num_ranks

    @property
    def is_first(self) -> bool:
        """Whether rank 0 runs here."""
        return 0 in self.own_ranks

    def start(
        self,
        weights: Weights,
        tied: TiedGradients,
        edges: Iterable[tuple[int, int]],
        options: Options,
    ) -> Ranks:
        """Return the ranks of this process, connected.

        Args:
            weights: of the model.
            tied: adds up gradients held in parts.
            edges: every (source rank, target rank) that exchanges messages.
            options: of the user's.
        """
        if self.device.type == "cpu":
            keep_freed_memory()
        if self.membership is None or self.watch is None:
            return LocalRanks(
                weights,
                tied,
                len(self.own_ranks),
                self.threads_per_rank,
                device=self.device,
                hang_s=options.hang_s,
            )
        transport = connect(
            self.membership,
            sorted(Edge(source, target) for source, target in edges),
            self.watch,
            device=self.device,
            timeout_s=options.timeout_s,
            shared_memory=options.shared_memory,
        )
        return ProcessRank(transport, self.watch, weights, tied)


def find_home(options: Options, num_ranks: int, *, launched: bool) -> Home:
    """Join the process group if a launcher started this process; else run all ranks here.

    Raises:
        RunError: if the processes do not find each other.
    """
    if not launched:
        threads = options.threads_per_rank or default_threads_per_rank(num_ranks)
        return Home(tuple(range(num_ranks)), device_of_threads(options), threads)
    device = _process_device(options)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # for code of the model's that asks for "cuda"
    membership = join_process_group(device, timeout_s=options.timeout_s)
    watch = DistributedWatch(
        default_store(),
        membership.rank,
        membership.num_ranks,
        attempt=attempt(),
        limits=Limits(hang_s=options.hang_s),
    )
    threads = options.threads_per_rank or torch.get_num_threads()
    return Home((membership.rank,), device, threads, membership, watch)


def _process_device(options: Options) -> torch.device:
    asked = device_of_threads(options)
    if str(asked) == "cuda":
        return torch.device("cuda", local_rank() % torch.cuda.device_count())
    return asked


def device_of_threads(options: Options) -> torch.device:
    """Return where ranks compute that are threads."""
    if options.device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(options.device)


def has_room_for(model: nn.Module, device: torch.device) -> bool:
    """Tell whether a whole model can be on ``device`` while it is recorded and measured.

    On a GPU that is three times its bytes: parameters, their gradients, and what one micro-batch
    takes.
    """
    if device.type == "cpu":
        return True
    tensors = (*model.parameters(), *model.buffers())
    num_bytes = sum(tensor.nbytes for tensor in tensors if tensor.device != device)
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return 3 * num_bytes <= free_bytes


def place(model: nn.Module, device: torch.device) -> None:
    """Move what is held of ``model`` to ``device``, in place: parameters, gradients and buffers."""
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if not parameter.is_meta:
                gradient = parameter.grad
                parameter.data = parameter.data.to(device)
                parameter.grad = None if gradient is None else gradient.to(device)
        for name, buffer in module.named_buffers(recurse=False):
            if not buffer.is_meta:
                setattr(module, name, buffer.to(device))
