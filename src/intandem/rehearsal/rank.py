"""What each rank does in a rehearsal: measure links, then run every step of every part."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from intandem.rehearsal.emulation import EmulatedPass
from intandem.rehearsal.links import measure
from intandem.rehearsal.request import RankReport
from intandem.rehearsal.waits import Waiter
from intandem.runtime.row_executor import RowExecutor
from intandem.runtime.transport.protocol import exchange

if TYPE_CHECKING:
    from collections.abc import Callable

    from intandem.rehearsal.emulation import Emulated
    from intandem.rehearsal.links import Transfer
    from intandem.rehearsal.request import Part, Request
    from intandem.runtime.transport.protocol import Transport
    from intandem.runtime.watch import Watch

_LEAD_S = 0.05
"""From when the last rank is ready until all begin: to hear of it takes the others a while."""


def run_rank(
    request: Request, transport: Transport, watch: Watch, tell: Callable[[int, int], None]
) -> RankReport:
    """Do one rank's part of ``request``, on the calling thread.

    Args:
        request: the same on every rank.
        transport: this rank's end.
        watch: is told where this rank is, and that it failed.
        tell: told a part and a step before that step begins.

    Raises:
        ActionError: if an instruction raised.
        PeerFailureError: if another rank failed.
    """
    rank = _Rank(transport, watch)
    transfers = rank.measure(request)
    passes = []
    for index, part in enumerate(request.parts):
        done = []
        for step in range(request.num_all_steps):
            tell(index, step)
            done.append(rank.run(part, step, together=request.begins_together(step)))
        passes.append(tuple(done))
    exchange(transport, "over", b"")  # nobody leaves while another waits
    return RankReport(tuple(transfers), tuple(passes))


class _Rank:
    """One rank, from one pass to the next."""

    def __init__(self, transport: Transport, watch: Watch) -> None:
        self._transport = transport
        self._executor = RowExecutor(transport.rank, watch)
        self._waiter = Waiter()
        self._sequence = 0

    def measure(self, request: Request) -> list[Transfer]:
        """Find out what messages take."""
        return measure(
            self._transport,
            self._waiter,
            request.sizes(),
            self._next_sequence(),
            action_s=request.shortest_action_s,
        )

    def run(self, part: Part, step: int, *, together: bool) -> Emulated:
        """Run one pass, begun by all ranks at once or when this one is at it."""
        sequence = self._next_sequence()
        acts = EmulatedPass(self._transport, part.costs, sequence, self._waiter)
        if together:
            self._begin_together(sequence)
        self._executor.execute(acts, part.program, step, lambda: None)
        return acts.result

    def _next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence

    def _begin_together(self, sequence: int) -> None:
        """Agree on a time a little later than when the last rank was ready, and wait for it.

        Processes of one machine share the clock.
        """
        own = str(time.perf_counter()).encode()
        ready_s = max(map(float, exchange(self._transport, f"ready/{sequence}", own)))
        self._waiter.until(ready_s + _LEAD_S)
