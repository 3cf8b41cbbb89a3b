"""The ranks that this process works for: all of them as threads, or one of a process group."""

from __future__ import annotations

import contextvars
import os
import queue
import threading
from typing import TYPE_CHECKING, Protocol

import torch

from intandem.errors import PeerFailureError, RunError
from intandem.runtime.executor import Executor
from intandem.runtime.local_watch import local_watches
from intandem.runtime.transport.local import local_transports

if TYPE_CHECKING:
    from intandem.runtime.tied import TiedGradients
    from intandem.runtime.transport.protocol import Transport
    from intandem.runtime.watch import Watch
    from intandem.runtime.weights import Weights
    from intandem.runtime.work import RankResult, StepWork

    _Job = tuple[contextvars.Context, StepWork]
    """What to do, and the caller's context variables."""


class Ranks(Protocol):
    """Executes passes for the ranks of this process."""

    @property
    def own(self) -> tuple[int, ...]:
        """Ranks of this process."""
        ...

    @property
    def transport(self) -> Transport:
        """An end of the transport that the caller's thread may use between passes."""
        ...

    def execute(self, work: StepWork) -> list[RankResult]:
        """Run one pass and return what every own rank brings back.

        Raises:
            ActionError: if an instruction of an own rank raised.
            PeerFailureError: if another rank failed.
        """
        ...

    def close(self) -> None:
        """Leave the run in good order; threads end."""
        ...


class LocalRanks:
    """Every rank is a thread of this process.

    Args:
        weights: the model's.
        tied: adds up gradients held in parts.
        num_ranks: threads to start.
        threads_per_rank: torch's own threads for each rank.
    """

    def __init__(
        self,
        weights: Weights,
        tied: TiedGradients,
        num_ranks: int,
        threads_per_rank: int,
    ) -> None:
        self._watches = local_watches(num_ranks)
        self._transports = local_transports(self._watches)
        self._results: queue.SimpleQueue[RankResult | BaseException] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._closed = False
        self._jobs: list[queue.SimpleQueue[_Job | None]] = []
        self._threads: list[threading.Thread] = []
        for rank, (transport, watch) in enumerate(
            zip(self._transports, self._watches, strict=True)
        ):
            jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
            executor = Executor(rank, transport, watch, weights, tied)
            thread = threading.Thread(
                target=_work,
                args=(executor, jobs, self._results, threads_per_rank),
                name=f"intandem rank {rank}",
                daemon=True,
            )
            thread.start()
            self._jobs.append(jobs)
            self._threads.append(thread)

    @property
    def own(self) -> tuple[int, ...]:
        """All ranks."""
        return tuple(range(len(self._jobs)))

    @property
    def transport(self) -> Transport:
        """Rank 0's end."""
        return self._transports[0]

    def execute(self, work: StepWork) -> list[RankResult]:
        """Run one pass; see ``Ranks.execute``."""
        if self._closed:
            msg = "this pipeline is closed; build a new one"
            raise RunError(msg)
        if self._failure is not None:
            msg = f"this pipeline ended with a failure: {self._failure}; build a new one"
            raise RunError(msg) from self._failure
        context = contextvars.copy_context()
        for jobs in self._jobs:
            jobs.put((context.copy(), work))
        try:
            found = [self._results.get() for _ in self._jobs]
        except BaseException as error:  # KeyboardInterrupt: let the ranks stop at their next wait
            self._failure = error
            for watch in self._watches:
                watch.fail(error)
            raise
        results = [item for item in found if not isinstance(item, BaseException)]
        errors = [item for item in found if isinstance(item, BaseException)]
        if errors:
            own = [e for e in errors if not isinstance(e, PeerFailureError)]
            self._failure = (own or errors)[0]
            raise self._failure
        return sorted(results, key=lambda result: result.rank)

    def close(self) -> None:
        """End the threads."""
        self._closed = True
        for jobs in self._jobs:
            jobs.put(None)
        for thread in self._threads:
            thread.join(timeout=5)
        for transport, watch in zip(self._transports, self._watches, strict=True):
            transport.close()
            watch.close()


class ProcessRank:
    """This process is one rank of a process group.

    Args:
        transport: this rank's end.
        watch: of the process group.
        weights: what is left of the model here.
        tied: adds up gradients held in parts.
    """

    def __init__(
        self, transport: Transport, watch: Watch, weights: Weights, tied: TiedGradients
    ) -> None:
        self._transport = transport
        self._watch = watch
        self._closed = False
        self._executor = Executor(transport.rank, transport, watch, weights, tied)

    @property
    def own(self) -> tuple[int, ...]:
        """The one rank of this process."""
        return (self._transport.rank,)

    @property
    def transport(self) -> Transport:
        """This rank's end."""
        return self._transport

    def execute(self, work: StepWork) -> list[RankResult]:
        """Run one pass on the caller's thread; see ``Ranks.execute``."""
        if self._closed:
            msg = "this pipeline is closed; build a new one"
            raise RunError(msg)
        return [self._executor.execute(work)]

    def close(self) -> None:
        """Leave the run in good order."""
        self._closed = True
        self._transport.close()
        self._watch.close()


def default_threads_per_rank(num_ranks: int) -> int:
    """Return torch's own threads for each of ``num_ranks`` ranks on this machine."""
    return max(1, (os.cpu_count() or 1) // num_ranks)


def _work(
    executor: Executor,
    jobs: queue.SimpleQueue[_Job | None],
    results: queue.SimpleQueue[RankResult | BaseException],
    num_threads: int,
) -> None:
    torch.set_num_threads(num_threads)
    while (job := jobs.get()) is not None:
        context, work = job
        try:
            results.put(context.run(executor.execute, work))
        except BaseException as error:  # handed to the thread that asked
            results.put(error)
