"""Executes training and evaluation passes, for one rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intandem.errors import PeerFailureError
from intandem.runtime.passes import Pass
from intandem.runtime.row_executor import RowExecutor
from intandem.runtime.watch import BETWEEN_STEPS
from intandem.runtime.work import Mode

if TYPE_CHECKING:
    from collections.abc import Callable

    from intandem.runtime.tied import TiedGradients
    from intandem.runtime.transport.protocol import Transport
    from intandem.runtime.watch import Watch
    from intandem.runtime.weights import Weights
    from intandem.runtime.work import RankResult, StepWork


class Executor:
    """One rank's thread of work.

    Args:
        rank: this rank.
        transport: its end of the transport.
        watch: is told where this rank is, and that it failed.
        weights: the model's parameters and buffers.
        tied: adds up gradients that are held in several parts.
    """

    def __init__(
        self,
        rank: int,
        transport: Transport,
        watch: Watch,
        weights: Weights,
        tied: TiedGradients,
    ) -> None:
        self.rank = rank
        self._transport = transport
        self._watch = watch
        self._weights = weights
        self._tied = tied
        self._rows = RowExecutor(rank, watch)

    def execute(self, work: StepWork) -> RankResult:
        """Run this rank's row of ``work.program``.

        Raises:
            ActionError: if an instruction raised; the watch is told first.
            PeerFailureError: if another rank failed.
        """
        if work.mode is Mode.TRAIN:
            self._tied.begin(self.rank)
        if work.has_new_calls:
            self._watch.be_patient(work.step)
        run = Pass(self.rank, self._transport, self._weights, work)
        self._rows.execute(run, work.program, work.step, lambda: self._reduce(work))
        run.end()
        if work.is_told and self.rank in work.last_ranks().values():
            self._transport.publish(work.end(self.rank), b"")
        return run.result

    def call(self, what: str, do: Callable[[int], None]) -> None:
        """Call ``do(rank)`` between passes; the watch is told ``what`` it is, and of failures."""
        self._watch.begin(what)
        try:
            do(self.rank)
        except PeerFailureError:
            raise
        except Exception as error:
            self._watch.fail(error)
            raise
        self._watch.begin(BETWEEN_STEPS)

    def _reduce(self, work: StepWork) -> None:
        self._tied.reduce(self.rank, self._transport, work.sequence)
