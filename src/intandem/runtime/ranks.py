"""The ranks that this process works for: all of them as threads, or one of a process group."""

from __future__ import annotations

import contextvars
import os
import queue
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import torch

from intandem.errors import PeerFailureError, RunError
from intandem.runtime.executor import Executor
from intandem.runtime.local_watch import LOOK_S, Lookout, local_watches
from intandem.runtime.stillness import HANG_S
from intandem.runtime.streams import callers_stream, on_stream
from intandem.runtime.transport.local import local_transports
from intandem.runtime.watch import BETWEEN_STEPS
from intandem.runtime.work import RankResult

if TYPE_CHECKING:
    from collections.abc import Callable

    from intandem.runtime.tied import TiedGradients
    from intandem.runtime.transport.protocol import Transport
    from intandem.runtime.watch import Watch
    from intandem.runtime.weights import Weights
    from intandem.runtime.work import StepWork

    _Answers = queue.SimpleQueue[RankResult | BaseException | None]
    _Job = tuple[
        contextvars.Context,
        torch.cuda.Stream | None,
        Callable[[Executor], RankResult | None],
        _Answers,
    ]
    """The caller's context variables and stream, what to do, and where to put what came of it."""


class Underway(Protocol):
    """A pass that own ranks have been asked for."""

    def wait(self) -> list[RankResult]:
        """Return what every own rank brings back, in rank order.

        Raises:
            ActionError: if an instruction of an own rank raised.
            PeerFailureError: if another rank failed.
        """
        ...


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

    def begin(self, work: StepWork) -> Underway:
        """Have every own rank run a pass, once it has done what was asked before."""
        ...

    def execute(self, work: StepWork) -> list[RankResult]:
        """Run one pass; see ``Underway.wait``."""
        ...

    def ask(self, what: str, do: Callable[[int], None]) -> None:
        """Have every own rank call ``do(rank)``, once it has done what was asked before.

        ``what`` is told to the watch (``Watch.begin``). What that raises ends the run: it is raised
        by ``join``, or when a later pass is waited for.
        """
        ...

    def join(self) -> None:
        """Wait until every own rank has done what was asked before."""
        ...

    def close(self) -> None:
        """Leave the run in good order; threads end."""
        ...

    def abandon(self) -> None:
        """Let go after an error of the caller's; if its process ends of that, it says so."""
        ...


class LocalRanks:
    """Every rank is a thread of this process.

    Args:
        weights: the model's.
        tied: adds up gradients held in parts.
        num_ranks: threads to start.
        threads_per_rank: torch's own threads for each rank.
        device: where they compute.
        hang_s: that an action may take at least; see ``stillness``.
    """

    def __init__(
        self,
        weights: Weights,
        tied: TiedGradients,
        num_ranks: int,
        threads_per_rank: int,
        *,
        device: torch.device | None = None,
        hang_s: float = HANG_S,
    ) -> None:
        self._device = device
        self._watches = local_watches(num_ranks)
        self._lookout = Lookout(self._watches, hang_s)
        self._transports = local_transports(self._watches)
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
                args=(executor, jobs, threads_per_rank),
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

    def begin(self, work: StepWork) -> Underway:
        """Have the threads run a pass; see ``Ranks.begin``."""
        answers = self._put(lambda executor: executor.execute(work))
        return self._underway(answers)

    def execute(self, work: StepWork) -> list[RankResult]:
        """Run one pass; see ``Underway.wait``."""
        return self.begin(work).wait()

    def ask(self, what: str, do: Callable[[int], None]) -> None:
        """Have the threads call a function; see ``Ranks.ask``."""
        self._put(lambda executor: executor.call(what, do))

    def join(self) -> None:
        """Wait for the threads; see ``Ranks.join``."""
        self._underway(self._put(lambda _: None)).wait()

    def _underway(self, answers: _Answers) -> _Threads:
        return _Threads(answers, len(self._jobs), self._fail, self._lookout)

    def _put(self, do: Callable[[Executor], RankResult | None]) -> _Answers:
        if self._closed:
            msg = "this pipeline is closed; build a new one"
            raise RunError(msg)
        if self._failure is not None:
            msg = f"this pipeline ended with a failure: {self._failure}; build a new one"
            raise RunError(msg) from self._failure
        answers: _Answers = queue.SimpleQueue()
        context, stream = contextvars.copy_context(), callers_stream(self._device)
        for jobs in self._jobs:
            jobs.put((context.copy(), stream, do, answers))
        return answers

    def _fail(self, error: BaseException, *, is_from_outside: bool) -> None:
        """End the run; where the caller was interrupted, let the ranks stop at their next wait."""
        self._failure = error
        for watch in self._watches if is_from_outside else ():
            watch.fail(error)

    def close(self) -> None:
        """End the threads; one that hangs is left to the end of the process."""
        self._closed = True
        for jobs in self._jobs:
            jobs.put(None)
        for thread, watch in zip(self._threads, self._watches, strict=True):
            thread.join(timeout=0 if watch.hangs else 5)
        for transport, watch in zip(self._transports, self._watches, strict=True):
            transport.close()
            watch.close()

    def abandon(self) -> None:
        """End the threads."""
        self.close()


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
        self._closed = self._abandoned = False
        self._executor = Executor(transport.rank, transport, watch, weights, tied)
        self._last: StepWork | None = None

    @property
    def own(self) -> tuple[int, ...]:
        """The one rank of this process."""
        return (self._transport.rank,)

    @property
    def transport(self) -> Transport:
        """This rank's end."""
        return self._transport

    def begin(self, work: StepWork) -> Underway:
        """Run one pass on the caller's thread; see ``Ranks.begin``."""
        return _Done(self.execute(work))

    def execute(self, work: StepWork) -> list[RankResult]:
        """Run one pass on the caller's thread; see ``Underway.wait``."""
        if self._closed:
            msg = "this pipeline is closed; build a new one"
            raise RunError(msg)
        self._last = None
        result = self._executor.execute(work)
        self._last = work
        return [result]

    def ask(self, what: str, do: Callable[[int], None]) -> None:
        """Call a function; see ``Ranks.ask``."""
        self._executor.call(what, do)

    def join(self) -> None:
        """Return: what is asked is done at once."""

    def close(self) -> None:
        """Leave the run in good order.

        Others may still be at the last step, and this process may host the store that they need
        for it: the ends of the last stages are waited for.
        """
        if self._abandoned:
            return
        self._closed = True
        self._watch.begin("close()")
        with suppress(RunError):
            for fact in () if self._last is None else self._last.ends():
                self._transport.read(fact)
        self._last = None
        self._transport.close()
        self._watch.close()

    def abandon(self) -> None:
        """Let go of connections, and leave the watch on; see ``Ranks.abandon``."""
        self._closed = self._abandoned = True
        self._watch.begin(BETWEEN_STEPS)
        self._transport.close()


def default_threads_per_rank(num_ranks: int) -> int:
    """Return torch's own threads for each of ``num_ranks`` ranks on this machine."""
    return max(1, (os.cpu_count() or 1) // num_ranks)


class _Done:
    """A pass that is over."""

    def __init__(self, results: list[RankResult]) -> None:
        self._results = results

    def wait(self) -> list[RankResult]:
        return self._results


class _Threads:
    """A pass that threads are at."""

    def __init__(
        self, answers: _Answers, num_ranks: int, fail: Callable[..., None], lookout: Lookout
    ) -> None:
        self._answers = answers
        self._num_ranks = num_ranks
        self._fail = fail
        self._lookout = lookout

    def wait(self) -> list[RankResult]:
        try:
            found = [self._next() for _ in range(self._num_ranks)]
        except PeerFailureError as error:
            self._fail(error, is_from_outside=False)
            raise
        except BaseException as error:  # KeyboardInterrupt
            self._fail(error, is_from_outside=True)
            raise
        errors = [item for item in found if isinstance(item, BaseException)]
        if errors:
            own = [e for e in errors if not isinstance(e, PeerFailureError)]
            first = (own or errors)[0]
            self._fail(first, is_from_outside=False)
            raise first
        results = [item for item in found if isinstance(item, RankResult)]
        return sorted(results, key=lambda result: result.rank)

    def _next(self) -> RankResult | BaseException | None:
        while True:
            with suppress(queue.Empty):
                return self._answers.get(timeout=LOOK_S)
            self._lookout.look()


def _work(executor: Executor, jobs: queue.SimpleQueue[_Job | None], num_threads: int) -> None:
    """Do one thing after another; after a failure, answer everything with it."""
    torch.set_num_threads(num_threads)
    failure: BaseException | None = None
    while (job := jobs.get()) is not None:
        context, stream, do, answers = job
        if failure is None:
            try:
                with on_stream(stream):
                    answers.put(context.run(do, executor))
                continue
            except BaseException as error:  # handed to the thread that waits
                failure = error
        answers.put(failure)
